#!/usr/bin/env bash
# Boots a throw-away Debian with a real systemd, in namespaces of its own, until this process is killed.
#
#   tests/systemd/boot.sh CACHE PACKAGES      PACKAGES is a folder, seen there as /packages
#   tests/systemd/boot.sh CACHE               only makes the base system, and prints nothing
#
# The base system is made once by debootstrap from the machine's own mirror and kept in CACHE; what happens in the
# booted one is written to memory and gone with it. The network is the machine's, so its servers on 127.0.0.1 are
# reached. Everything runs in a process-id namespace that ends with this process, mounts too, even on SIGKILL.
set -euo pipefail

cache=$1 packages=${2:-}
suite=bookworm
base=$cache/systemd-$suite-1

die() { printf 'systemd test: %s\n' "$*" >&2; exit 1; }

[[ $EUID -eq 0 ]] || die 'a systemd can only be booted by root'
for tool in systemd-nspawn:systemd-container debootstrap:debootstrap nsenter:util-linux; do
  command -v "${tool%%:*}" >/dev/null || die "${tool%%:*} is missing: apt-get install ${tool##*:}"
done

mirror() {
  # shellcheck disable=SC2016  # apt's own placeholder
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' |
    grep -v security | head -n 1
}

make_base() {
  local from part
  from=$(mirror)
  [[ -n $from ]] || { apt-get update -qq >&2; from=$(mirror); }
  [[ -n $from ]] || die "this machine's apt knows no Debian mirror"
  mkdir -p "$cache"
  part=$(mktemp -d "$base.XXXXXX")
  # shellcheck disable=SC2064  # this very folder
  trap "rm -rf --one-file-system '$part'" EXIT
  chmod 755 "$part"
  # No sync for every package: it is thrown away if this machine goes down meanwhile.
  mkdir -p "$part/etc/dpkg/dpkg.cfg.d"
  echo force-unsafe-io >"$part/etc/dpkg/dpkg.cfg.d/unsafe-io"
  unshare --mount --propagation private --pid --fork --kill-child=KILL --mount-proc \
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,ca-certificates "$suite" "$part" "$from" \
    >"$base.log" 2>&1 || { tail -n 20 "$base.log" >&2; die 'debootstrap failed'; }
  : >"$part/etc/machine-id"
  rm -rf "$part"/var/cache/apt/archives/*.deb "$part/etc/resolv.conf" "$part/etc/hostname" "$part/var/log/journal"
  # Kept on disk and without limits, so that a test sees every line.
  mkdir -p "$part/var/log/journal" "$part/etc/systemd/journald.conf.d"
  printf '[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\nSyncIntervalSec=1s\n' \
    >"$part/etc/systemd/journald.conf.d/test.conf"
  # Nothing that begins by itself in the middle of a test.
  for timer in apt-daily apt-daily-upgrade e2scrub_all dpkg-db-backup; do
    ln -sf /dev/null "$part/etc/systemd/system/$timer.timer"
  done
  mv -T "$part" "$base"
  trap - EXIT
}

# nspawn makes its control groups below those it finds itself in: without its own, two of them would share.
enter_control_group() {
  local root
  for root in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    [[ -e $root/cgroup.procs ]] || continue
    # What earlier ones left is empty and can go.
    find "$root" -maxdepth 1 -name 'snapsync-test-*' -exec find {} -depth -type d -exec rmdir {} + \; 2>/dev/null || true
    mkdir -p "$root/snapsync-test-$$"
    echo $$ >"$root/snapsync-test-$$/cgroup.procs"
  done
}

[[ -d $base ]] || make_base
[[ -n $packages ]] || exit 0
enter_control_group
export BASE=$base PACKAGES=$packages
# A pure second version of control groups inside, as on every Debian, whatever the machine has.
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
# shellcheck disable=SC2016  # expanded by the inner shell
exec setpriv --pdeathsig KILL -- \
  unshare --mount --propagation private --pid --fork --kill-child=KILL --mount-proc -- bash -euc '
    mount -t tmpfs -o size=2g,mode=755 snapsync-test /mnt
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t overlay -o "lowerdir=$BASE,upperdir=/mnt/upper,workdir=/mnt/work" snapsync-test /mnt/root
    exec systemd-nspawn --directory=/mnt/root --boot --machine=snapsync-test --register=no --keep-unit \
      --console=pipe --link-journal=no --timezone=off --resolv-conf=off --bind-ro="$PACKAGES:/packages"
  ' </dev/null
