#!/bin/sh
# Builds the tools that `make bench` compares with, from the Go module proxy that `go env GOPROXY` names, into
# .cache/tools/bin: mongodump and mongorestore, and Percona ClusterSync (pcsm). Needs a Go toolchain.
#
# Tools that cannot be had are named, and the others are built all the same; `make bench` goes without them.
# MONGO_TOOLS_VERSION and PCSM_VERSION choose other versions.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
bin="$root/.cache/tools/bin"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$bin"
missing=""

# build NAME MODULE VERSION FOLDER: the program in a folder of a module. `go install` would want the list of all
# versions too, which not every proxy has.
build() {
    log="$work/$1.log"
    source=$(cd "$work" && go mod download -json "$2@$3" 2>&1 | tee "$log" | sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p')
    # The module cache is read-only, and its vendored copies are not complete.
    if [ -n "$source" ] && cp -R "$source" "$work/$1" && chmod -R u+w "$work/$1" &&
        (cd "$work/$1" && go build -mod=mod -o "$bin/$1" "./$4") >>"$log" 2>&1; then
        echo "$bin/$1"
    else
        missing="$missing $1"
        echo "$1: not built:" >&2
        tail -n 5 "$log" >&2
    fi
}

if ! command -v go >/dev/null; then
    echo "go is not installed: no tools are built" >&2
    exit 1
fi
# Of July 2024 (100.10): the newest that the proxy is known to have under a version of its own.
tools=${MONGO_TOOLS_VERSION:-v0.0.0-20240723193119-837c2bc263f4}
build mongodump github.com/mongodb/mongo-tools "$tools" mongodump/main
build mongorestore github.com/mongodb/mongo-tools "$tools" mongorestore/main
build pcsm github.com/percona/percona-clustersync-mongodb "${PCSM_VERSION:-latest}" .
if [ -n "$missing" ]; then
    echo "missing:$missing" >&2
    exit 1
fi
