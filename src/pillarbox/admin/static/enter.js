"use strict";
// On the page that asks for a log-in: this browser may have a session already. Its path is kept in localStorage, which knows
// ports, so that bookmarks of any session lead to the latest one.
const latest = localStorage.getItem("pillarbox") || "";
const here = /^(\/s\/[\w-]{22})?(\/.*)?$/.exec(location.pathname);
if (/^\/s\/[\w-]{22}$/.test(latest) && here) {
  if (here[1] === latest && here[2]) localStorage.removeItem("pillarbox"); // It has ended.
  else location.replace(latest + (here[2] || "/") + location.search + location.hash);
}
