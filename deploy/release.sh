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
#   RATE, SECONDS_OF_TEST  of the load test that compares both versions, requests a second (20) and seconds (30)
#   TOLERANCE   by how much the new version may be slower in it (0.1)
set -euo pipefail
name=$1 source=$2 store=$3
shift 3
production=${PRODUCTION:-model_repository}
build=$(mktemp -d)
trap 'shoal stop -r "$build/model_repository" >"$build/stop" 2>&1 || true; rm -rf "$build"' EXIT
mkdir "$build/model_repository"

load() { # folder, further options
    shoal loadtest "$name" --rate "${RATE:-20}" --seconds "${SECONDS_OF_TEST:-30}" --protocol grpc \
        -r "$build/model_repository" --report "$build/$1" "${@:2}"
}
served() { # repository
    shoal versions "$name" -r "$1" --json |
        python3 -c 'import json, sys; print(*[v["version"] for v in json.load(sys.stdin)["versions"] if v["served"]])'
}

if shoal pull "$store/$name" -r "$build/model_repository"; then
    before=$(served "$build/model_repository")
    shoal serve --detach --http-port 0 --grpc-port 0 --metrics-port 0 -r "$build/model_repository"
    load before
else
    before=
    echo "the store has no version of $name yet"
fi
shoal export "$source" --name "$name" -r "$build/model_repository" "$@"
version=$(served "$build/model_repository")
if [ "$version" = "$before" ]; then
    echo "it is version $version, which the store has already"
    exit 0
fi
if [ -n "$before" ]; then
    shoal promote "$name" "$version" --wait -r "$build/model_repository"
    load after --against "$build/before/report.json" --tolerance "${TOLERANCE:-0.1}"
fi
shoal push "$name" "$store/$name" -r "$build/model_repository"
shoal pull "$store/$name:$version" -r "$production"
if [ "$(served "$production")" = "$version" ]; then
    echo "it is the first version of $name that $production has, and is served"
else
    # shellcheck disable=SC2086 - several options
    shoal canary "$name" "$version" --folder "${CANARY:-canary}" ${CANARY_OPTIONS:---share 5% --max 2h} -r "$production"
fi
