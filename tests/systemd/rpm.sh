#!/usr/bin/env bash
# Takes an RPM through its life, as `rpm` itself does it, in a throw-away root that has no systemd running.
#
#   tests/systemd/rpm.sh CACHE PACKAGE
#
# The root is the base system that boot.sh makes, with everything that is written kept in memory.
set -euo pipefail

cache=$1 package=$(realpath "$2")
export BASE=$cache/systemd-bookworm-1

"$(dirname "${BASH_SOURCE[0]}")/boot.sh" "$cache"
export PACKAGE=$package
# shellcheck disable=SC2016  # expanded by the inner shell
exec unshare --mount --propagation private -- bash -euc '
  mount -t tmpfs -o size=1g,mode=755 snapsync-test /mnt
  mkdir /mnt/upper /mnt/work /mnt/root
  mount -t overlay -o "lowerdir=$BASE,upperdir=/mnt/upper,workdir=/mnt/work" snapsync-test /mnt/root
  root=/mnt/root
  stub=$root/etc/snapsync/snapsync.toml
  say() { echo "rpm: $*"; }
  fail() { say "$*"; exit 1; }
  # Its dependencies are of another world; what they stand for is there.
  as_rpm() { rpm --root "$root" --force-debian --nodeps "$@"; }

  say "$(rpm -qp --requires "$PACKAGE" | grep -c .) dependencies"
  as_rpm -i "$PACKAGE"
  [[ $(chroot "$root" stat -c "%a %U:%G" /etc/snapsync/snapsync.toml) == "640 root:snapsync" ]] || fail "mode of the stub"
  [[ $(chroot "$root" stat -c "%a %U:%G" /etc/snapsync) == "750 root:snapsync" ]] || fail "mode of the folder"
  chroot "$root" getent passwd snapsync | grep -q :/var/lib/snapsync: || fail "no user"
  chroot "$root" /usr/bin/snapsync --version
  as_rpm -V snapsync || fail "differs from what was packed"
  echo "# mine" >>"$stub"
  # As an upgrade goes, also between equal versions.
  as_rpm -U --force "$PACKAGE"
  grep -q "# mine" "$stub" || fail "an edited stub was replaced"
  [[ -x $root/usr/bin/snapsync ]] || fail "the old package took the new program along"
  as_rpm -e snapsync
  [[ ! -e $root/usr/bin/snapsync ]] || fail "the program stayed"
  [[ -e $stub.rpmsave ]] || fail "an edited stub was lost: $(ls "$root/etc/snapsync")"
  say ok
' </dev/null
