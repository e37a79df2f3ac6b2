#!/usr/bin/env bash
# A release, from a checkpoint to callers: export and prove it, compare it with what is served, push it to a store,
# then pull it where it is served and let a canary decide. It ends with an error where one of these says no, and
# what is served goes on.
#
#   deploy/release.sh NAME SOURCE STORE [options of shoal export]
#
#   NAME        of the model
#   SOURCE      the checkpoint, as for shoal export
#   STORE       s3://BUCKET/PREFIX or oci://REGISTRY/PATH
#   PRODUCTION  the model repository that the servers behind Envoy follow
#   CANARY      the folder of shoal deploy envoy --canary (canary)
#   CANARY_OPTIONS  of shoal canary (--share 5% --max 2h)
#   RATE, SECONDS_OF_TEST  of the load test that asks both in turn: requests a second (20), seconds for each (32)
#   TOLERANCE   by how much the new version may be slower in it (0.1)
set -euo pipefail
name=$1 source=$2 store=$3
shift 3
production=${PRODUCTION:?the model repository that the servers follow}
build=$(mktemp -d)
end() {
    for repository in before after; do shoal stop -r "$build/$repository" >"$build/stop" 2>&1 || true; done
    rm -rf "$build"
}
trap end EXIT
served() { # repository
    shoal versions "$name" -r "$1" --json |
        python3 -c 'import json, sys; print(*[v["version"] for v in json.load(sys.stdin)["versions"] if v["served"]])'
}

# Into $build/$2, from the store; 1: it has no such version, which is no error here.
pulled() { # version, repository
    mkdir -p "$build/$2"
    shoal pull "$store/$name${1:+:$1}" -r "$build/$2" && return 0
    [ $? = 3 ] || exit 1
    return 1
}

before=
if [ -d "$production/$name" ]; then before=$(served "$production"); fi
# The newest one, so that numbers go on from it, whether or not it came to be served.
pulled "" after || echo "the store has no version of $name yet"
if [ -n "$before" ]; then
    pulled "$before" before || { # it was exported there
        shoal push "$name" "$store/$name" -r "$production"
        pulled "$before" before
    }
    shoal pull --promote "$store/$name:$before" -r "$build/after"
fi
shoal export "$source" --name "$name" -r "$build/after" "$@"
version=$(served "$build/after")
if [ "$version" = "$before" ]; then
    echo "it is version $version, which is served already"
    exit 0
fi
if [ -n "$before" ]; then
    for repository in before after; do
        shoal serve --detach --http-port 0 --grpc-port 0 --metrics-port 0 -r "$build/$repository"
    done
    beside=$(shoal status -r "$build/before" --json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["servers"][-1]["grpc"])')
    shoal loadtest "$name" --rate "${RATE:-20}" --seconds "${SECONDS_OF_TEST:-32}" --protocol grpc \
        -r "$build/after" --report "$build/report" --beside "$beside" --tolerance "${TOLERANCE:-0.1}"
fi
pulled "$version" stored || shoal push "$name" "$store/$name" -r "$build/after" # else it was pushed by an earlier run
shoal pull "$store/$name:$version" -r "$production"
if [ "$(served "$production")" = "$version" ]; then
    echo "it is the first version of $name that $production has, and is served"
else
    # shellcheck disable=SC2086 - several options
    shoal canary "$name" "$version" --folder "${CANARY:-canary}" ${CANARY_OPTIONS:---share 5% --max 2h} -r "$production"
fi
