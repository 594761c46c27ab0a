#!/bin/sh
# Builds the tools that `make bench` compares with, from the Go module proxy that `go env GOPROXY` names, into
# .cache/tools/bin: mongodump and mongorestore, and Percona ClusterSync (pcsm). Needs a Go toolchain.
#
# Tools that cannot be had are named, and the others are built all the same; `make bench` goes without them.
# MONGO_TOOLS_VERSION and PCSM_VERSION choose other versions than the latest.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
bin="$root/.cache/tools/bin"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$bin"
missing=""

# build NAME PACKAGE VERSION: the package's program is called otherwise, so it is built alone and renamed.
build() {
    mkdir -p "$work/$1"
    if GOBIN="$work/$1" go install "$2@$3" >"$work/$1.log" 2>&1; then
        mv "$work/$1"/* "$bin/$1"
        echo "$bin/$1"
    else
        missing="$missing $1"
        echo "$1: not built:" >&2
        tail -n 5 "$work/$1.log" >&2
    fi
}

if ! command -v go >/dev/null; then
    echo "go is not installed: no tools are built" >&2
    exit 1
fi
tools=github.com/mongodb/mongo-tools
build mongodump "$tools/mongodump/main" "${MONGO_TOOLS_VERSION:-latest}"
build mongorestore "$tools/mongorestore/main" "${MONGO_TOOLS_VERSION:-latest}"
build pcsm github.com/percona/percona-clustersync-mongodb "${PCSM_VERSION:-latest}"
if [ -n "$missing" ]; then
    echo "missing:$missing" >&2
    exit 1
fi
