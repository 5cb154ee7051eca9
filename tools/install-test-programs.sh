#!/bin/sh
# Installs the programs that the tests and the bench run for real: Postfix's smtp-source and smtp-sink (and Postfix itself,
# not configured and not started), swaks, curl, msmtp, strace, Chromium, systemd-analyze, PostgreSQL (no cluster of its own is made, nothing is started). As root on Debian or Ubuntu; elsewhere it names what is missing.
set -eu
missing=""
PATH="$PATH:/usr/sbin:/sbin"
for program in smtp-source smtp-sink swaks curl pgbouncer msmtp strace chromium systemd-analyze jq ip; do
    command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
done
# What Playwright's driver runs on; a program cannot be asked for it.
if [ "$(uname)" = Linux ]; then ldconfig -p 2>/dev/null | grep -q libatomic.so.1 || missing="$missing libatomic1"; fi
command -v postgres >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$missing postgresql"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing with apt-get what the tests need:$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >/dev/null
    echo "postfix postfix/main_mailer_type select No configuration" | debconf-set-selections
    # Debian's package would make a cluster and start it; the tests make their own, in a scratch folder.
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    apt-get install -q -y --no-install-recommends postfix swaks curl msmtp strace ca-certificates chromium systemd libatomic1 postgresql jq iproute2 pgbouncer >/dev/null
else
    echo "not installed here, so the tests that run them are left out:$missing" >&2
fi
