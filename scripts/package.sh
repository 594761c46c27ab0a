#!/usr/bin/env bash
# Builds a package of this tree and prints its path (everything else goes to stderr). All kinds hold the same files, and
# need no more tools than their format's own.
#
#   scripts/package.sh deb        target/package/snapsync_VERSION_ARCH.deb, for Debian 12, Ubuntu 22.04 and newer
#   scripts/package.sh rpm        target/package/snapsync-VERSION.ARCH.rpm, for distributions of the same age
#   scripts/package.sh tarball    target/package/snapsync-VERSION-ARCH-linux.tar.gz, the files below one folder
#
# PROFILE      cargo's profile: release (default), or dev, which links faster and runs slower
# DEB_VERSION  another version of the package than that of the program
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=${1:-deb}
profile=${PROFILE:-release}
stage=target/package

say() { printf 'package: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
tool() { command -v "$1" >/dev/null || die "$1 is missing: apt-get install $2"; }

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
  gzip -9nf "$stage/doc/NOTICES" "$stage/doc/changelog.Debian"
  gzip -9nc CHANGELOG.md >"$stage/doc/changelog.gz"
  # The same sources give the same package. Not told to the build: libraries in C would be compiled anew for it.
  SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
  export SOURCE_DATE_EPOCH
  program_version=$("$stage/bin/snapsync" --version)
  program_version=${program_version##* }
}

# The files as they lie on a machine, below $1.
lay_out() {
  local root=$1 doc=$1/usr/share/doc/snapsync
  rm -rf "$root"
  put() { install -D -m "$1" "${@:3}" -t "$root/$2"; }
  put 755 usr/bin "$stage/bin/snapsync"
  put 640 etc/snapsync packaging/snapsync.toml
  put 644 usr/lib/systemd/system systemd/*.service systemd/*.timer
  put 644 usr/lib/systemd/catalog packaging/snapsync.catalog
  install -D -m 644 packaging/debian/snapsync.sysusers "$root/usr/lib/sysusers.d/snapsync.conf"
  put 644 usr/share/man/man1 "$stage"/man/*.1
  put 644 usr/share/man/man5 "$stage"/man/*.5
  gzip -9n "$root"/usr/share/man/man?/*
  install -D -m 644 "$stage/completions/snapsync.bash" "$root/usr/share/bash-completion/completions/snapsync"
  put 644 usr/share/zsh/vendor-completions "$stage/completions/_snapsync"
  put 644 usr/share/fish/vendor_completions.d "$stage/completions/snapsync.fish"
  put 644 "${doc#"$root/"}" README.md docs/*.md "$stage"/doc/{NOTICES.gz,changelog.gz}
  put 644 "${doc#"$root/"}/examples" docs/snapsync.example.toml packaging/prometheus/*
  find "$root" -type d -exec chmod 755 {} +
}

deb() {
  tool dpkg-deb dpkg
  tool dpkg-shlibdeps dpkg-dev
  build
  local root=$stage/deb version architecture libraries
  version=${DEB_VERSION:-$program_version-1}
  architecture=$(dpkg --print-architecture)
  lay_out "$root"
  install -D -m 644 packaging/debian/copyright "$stage/doc/changelog.Debian.gz" -t "$root/usr/share/doc/snapsync"
  install -D -m 644 packaging/debian/lintian-overrides "$root/usr/share/lintian/overrides/snapsync"
  # The tool wants to find itself in a source package.
  mkdir -p "$stage/libraries/debian"
  printf 'Source: snapsync\n\nPackage: snapsync\nArchitecture: any\n' >"$stage/libraries/debian/control"
  libraries=$(cd "$stage/libraries" && dpkg-shlibdeps -O "$OLDPWD/$root/usr/bin/snapsync")
  mkdir -m 755 "$root/DEBIAN"
  (cd "$root" && find etc -type f -printf '/%p\n' >DEBIAN/conffiles)
  # Without configuration: that is meant to be changed, and dpkg keeps its sum by itself.
  (cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
  sed -e "s|@VERSION@|$version|" -e "s|@ARCHITECTURE@|$architecture|" \
    -e "s|@LIBRARIES@|${libraries#shlibs:Depends=}|" \
    -e "s|@SIZE@|$(du -sk --apparent-size "$root" | cut -f 1)|" packaging/debian/control >"$root/DEBIAN/control"
  install -m 755 packaging/debian/{postinst,prerm,postrm} "$root/DEBIAN"
  local options=(--root-owner-group)
  # The smallest package takes a while to compress.
  [[ $profile != dev ]] || options+=(-Zgzip -z1)
  rm -f "$stage"/*.deb
  dpkg-deb "${options[@]}" --build "$root" "$stage/snapsync_${version}_$architecture.deb" >&2
  rm -rf "$root" "$stage/libraries"
  echo "$stage"/*.deb
}

rpm() {
  tool rpmbuild rpm
  build
  local root=$PWD/$stage/rpm
  lay_out "$root"
  # Names of the other world.
  mkdir -p "$root/usr/share/zsh/site-functions"
  mv "$root"/usr/share/zsh/vendor-completions/_snapsync "$root/usr/share/zsh/site-functions/"
  rmdir "$root/usr/share/zsh/vendor-completions"
  install -D -m 644 LICENSE -t "$root/usr/share/doc/snapsync"
  rm -rf "$stage"/*.rpm "$stage/rpmbuild"
  rpmbuild -bb --quiet --define "_topdir $PWD/$stage/rpmbuild" --define "_rpmdir $PWD/$stage" \
    --define '_rpmfilename %{name}-%{version}-%{release}.%{_arch}.rpm' --define '_build_id_links none' \
    --define "root $root" --define "version $program_version" packaging/rpm/snapsync.spec >&2
  rm -rf "$root" "$stage/rpmbuild"
  echo "$stage"/*.rpm
}

tarball() {
  build
  local name folder
  name=snapsync-$program_version-$(uname -m)-linux
  folder=$stage/tree/$name
  rm -rf "$stage/tree"
  mkdir -p "$folder"/{bin,man,completions,systemd,doc/examples}
  cp "$stage/bin/snapsync" "$folder/bin/"
  cp "$stage"/man/* "$folder/man/"
  cp "$stage"/completions/* "$folder/completions/"
  cp systemd/* packaging/debian/snapsync.sysusers packaging/snapsync.catalog "$folder/systemd/"
  cp LICENSE README.md CHANGELOG.md docs/*.md "$stage/doc/NOTICES.gz" "$folder/doc/"
  cp packaging/snapsync.toml docs/snapsync.example.toml packaging/prometheus/* "$folder/doc/examples/"
  tar -C "$stage/tree" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
    -czf "$stage/$name.tar.gz" "$name"
  rm -rf "$stage/tree"
  echo "$stage/$name.tar.gz"
}

case $kind in
  deb | rpm | tarball) "$kind" ;;
  *) die "unknown kind of package: $kind; known are deb, rpm and tarball" ;;
esac
