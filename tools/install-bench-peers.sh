#!/bin/sh
# Fetches the servers that `make bench` measures beside Postfix: Exim and OpenSMTPD (Debian's packages, unpacked into .peers/ and
# not installed: Debian lets one mail server be installed at a time), and Haraka (npm, where Node is there). Each runs with the
# system user that its package would make. As root on Debian or Ubuntu; elsewhere they are named and left out.
set -u
folder="$(cd "$(dirname "$0")/.." && pwd)/.peers"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "left out of the bench, for they want root and Debian: exim, opensmtpd, haraka" >&2
    exit 0
fi
mkdir -p "$folder"
cd "$folder" || exit 0
add_user() { getent passwd "$1" >/dev/null || useradd -r -M -d /nonexistent -s /usr/sbin/nologin "$1"; }
unpack() { # unpack PROGRAM USERS PACKAGES
    program="$1" users="$2"
    shift 2
    for user in $users; do add_user "$user"; done
    [ -x "debian/usr/sbin/$program" ] && return
    echo "fetching for the bench, into .peers/: $*"
    # Into a folder that apt's own user may write to.
    scratch="$(mktemp -d)"
    chmod 755 "$scratch"
    if (cd "$scratch" && apt-get -q download "$@" >/dev/null 2>&1); then
        for package in "$scratch"/*.deb; do dpkg -x "$package" debian; done
    else
        echo "left out of the bench, for it could not be fetched: $program" >&2
    fi
    rm -rf "$scratch"
}
unpack exim4 "Debian-exim" exim4-daemon-light
unpack smtpd "opensmtpd opensmtpq" opensmtpd
# Packages have programs that run with more rights than whoever calls them. Unpacked here they must not: only root runs them, and
# what a server itself runs again as its own user.
find debian -type f -perm /6000 -exec chmod u-s,g-s {} + 2>/dev/null
if [ -x debian/usr/sbin/smtpctl ]; then
    # It asks for its own group before it does anything; nobody but root may call it here.
    chgrp opensmtpq debian/usr/sbin/smtpctl && chmod 2700 debian/usr/sbin/smtpctl
fi
for program in exim4 smtpd; do
    if [ -x "debian/usr/sbin/$program" ] && ldd "debian/usr/sbin/$program" | grep -q "not found"; then
        echo "left out of the bench, for a library is missing: $program ($(ldd "debian/usr/sbin/$program" | grep "not found" | tr -s '\t\n' ' '))" >&2
        rm "debian/usr/sbin/$program"
    fi
done
if [ ! -d haraka/node_modules/Haraka ]; then
    if command -v npm >/dev/null 2>&1; then
        echo "fetching for the bench, into .peers/: Haraka"
        npm install --silent --no-audit --no-fund --ignore-scripts --prefix haraka Haraka >/dev/null 2>&1 ||
            echo "left out of the bench, for it could not be fetched: haraka" >&2
    else
        echo "left out of the bench, for Node and npm are not here: haraka" >&2
    fi
fi
exit 0
