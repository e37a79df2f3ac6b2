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
#   PRODUCTION  the model repository that the servers behind Envoy follow (model_repository)
#   CANARY      the folder of shoal deploy envoy --canary (canary)
#   CANARY_OPTIONS  of shoal canary (--share 5% --max 2h)
#   RATE, SECONDS_OF_TEST  of the load test that asks both in turn: requests a second (20), seconds for each (32)
#   TOLERANCE   by how much the new version may be slower in it (0.1)
set -euo pipefail
name=$1 source=$2 store=$3
shift 3
production=${PRODUCTION:-model_repository}
build=$(mktemp -d)
end() {
    for repository in before after; do shoal stop -r "$build/$repository" >"$build/stop" 2>&1 || true; done
    rm -rf "$build"
}
trap end EXIT
mkdir "$build/before"

served() { # repository
    shoal versions "$name" -r "$1" --json |
        python3 -c 'import json, sys; print(*[v["version"] for v in json.load(sys.stdin)["versions"] if v["served"]])'
}

if shoal pull "$store/$name" -r "$build/before"; then
    before=$(served "$build/before")
elif [ $? = 3 ]; then # it answers, and holds none
    before=
    echo "the store has no version of $name yet"
else
    exit 1
fi
cp -r "$build/before" "$build/after"
shoal export "$source" --name "$name" -r "$build/after" "$@"
version=$(served "$build/after")
if [ "$version" = "$before" ]; then
    echo "it is version $version, which the store has already"
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
shoal push "$name" "$store/$name" -r "$build/after"
shoal pull "$store/$name:$version" -r "$production"
if [ "$(served "$production")" = "$version" ]; then
    echo "it is the first version of $name that $production has, and is served"
else
    # shellcheck disable=SC2086 - several options
    shoal canary "$name" "$version" --folder "${CANARY:-canary}" ${CANARY_OPTIONS:---share 5% --max 2h} -r "$production"
fi
