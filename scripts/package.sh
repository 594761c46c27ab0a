#!/usr/bin/env bash
# Builds a package of this tree and prints its path (everything else goes to stderr).
#
#   scripts/package.sh deb        target/package/snapsync_VERSION_ARCH.deb, for Debian 12, Ubuntu 22.04 and newer
#   scripts/package.sh tarball    target/package/snapsync-VERSION-ARCH-linux.tar.gz, the same files below one folder
#
# PROFILE      cargo's profile: release (default), or dev, which links faster and runs slower
# DEB_VERSION  another version of the Debian package than that of the program, to try upgrades
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=${1:-deb}
profile=${PROFILE:-release}
stage=target/package
tools=${SNAPSYNC_CACHE:-$PWD/.cache}/tools
cargo_deb_version=3.8.0

say() { printf 'package: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# Everything that is not checked in, below $stage.
build() {
  local built=${CARGO_TARGET_DIR:-target}/$profile
  [[ $profile != dev ]] || built=${CARGO_TARGET_DIR:-target}/debug
  cargo build --locked --profile "$profile" --bin snapsync --example package_files >&2
  mkdir -p "$stage/bin"
  cp "$built/snapsync" "$stage/bin/snapsync"
  # Everything, also where the profile keeps names for backtraces: a package holds no debug information.
  strip "$stage/bin/snapsync"
  "$built/examples/package_files" "$stage"
  gzip -9nf "$stage/doc/NOTICES"
  gzip -9nc CHANGELOG.md >"$stage/doc/changelog.gz"
}

# Built once and kept. Without optimisation: it is run seldom, and half of the time goes into building it.
cargo_deb() {
  if ! "$tools/bin/cargo-deb" --version 2>/dev/null | grep -qF "$cargo_deb_version"; then
    say "building cargo-deb $cargo_deb_version"
    CARGO_TARGET_DIR=$tools/build CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --force \
      --root "$tools" --version "$cargo_deb_version" cargo-deb >&2 || die 'cargo-deb cannot be built; is a registry reachable?'
    rm -rf "$tools/build"
  fi
  PATH=$tools/bin:$PATH cargo deb "$@"
}

deb() {
  command -v dpkg-shlibdeps >/dev/null || die 'dpkg-shlibdeps is missing: apt-get install dpkg-dev'
  build
  local options=(--no-build --no-strip --no-dbgsym --locked --quiet --output "$stage/")
  # The smallest package takes a minute to compress.
  [[ $profile != dev ]] || options+=(--fast)
  [[ -z ${DEB_VERSION:-} ]] || options+=(--deb-version "$DEB_VERSION")
  rm -f "$stage"/*.deb
  cargo_deb "${options[@]}" >&2
  echo "$stage"/*.deb
}

tarball() {
  build
  local version name folder
  version=$("$stage/bin/snapsync" --version)
  name=snapsync-${version##* }-$(uname -m)-linux
  folder=$stage/tree/$name
  rm -rf "$stage/tree"
  mkdir -p "$folder"/{bin,man,completions,systemd,doc/examples}
  cp "$stage/bin/snapsync" "$folder/bin/"
  cp "$stage"/man/* "$folder/man/"
  cp "$stage"/completions/* "$folder/completions/"
  cp systemd/* packaging/debian/snapsync.sysusers packaging/snapsync.catalog "$folder/systemd/"
  cp LICENSE README.md CHANGELOG.md docs/*.md "$stage/doc/NOTICES.gz" "$folder/doc/"
  cp packaging/snapsync.toml docs/snapsync.example.toml "$folder/doc/examples/"
  tar -C "$stage/tree" --sort=name --owner=0 --group=0 --numeric-owner -czf "$stage/$name.tar.gz" "$name"
  rm -rf "$stage/tree"
  echo "$stage/$name.tar.gz"
}

case $kind in
  deb) deb ;;
  tarball) tarball ;;
  *) die "unknown kind of package: $kind; known are deb and tarball" ;;
esac
