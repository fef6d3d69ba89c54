#!/bin/sh
# A scanner, for tests: it notes what it is asked, looks at the image or the disk, and answers with
# FOLDER/report, or as FOLDER/mode says. While FOLDER/hold is there, it does not end.
set -eu
folder=$1
shift
case "$*" in
*--download-db-only*)
    echo "$*" >> "$folder/databases"
    exit 0
    ;;
esac
echo "$*" >> "$folder/calls"
printf '%s' "${TRIVY_REGISTRY_TOKEN-}" > "$folder/token"
for last; do :; done
case $1 in
image)
    url="http://${last%%/*}/v2/image"
    ask() { curl -sS --noproxy '*' -H "Authorization: Bearer $TRIVY_REGISTRY_TOKEN" "$@"; }
    ask "$url/manifests/${last#*@}" > "$folder/manifest"
    layer=$(sed 's/.*"layers":\[[^]]*"digest":"\([^"]*\)".*/\1/' "$folder/manifest")
    ask "$url/blobs/$layer" > "$folder/layer"
    curl -sS --noproxy '*' -o /dev/null -w '%{http_code}' "$url/manifests/${last#*@}" > "$folder/stranger"
    ;;
vm)
    wc -c < "$last" | tr -d ' ' > "$folder/disk"
    # Where an ext4 file system has its magic number.
    od -An -tx1 -j1080 -N2 "$last" | tr -d ' ' >> "$folder/disk"
    ;;
esac
while [ -e "$folder/hold" ]; do sleep 0.05; done
case $(cat "$folder/mode" 2>/dev/null || true) in
garbage) echo 'no report' ;;
flood) exec yes '{"SchemaVersion":2}' ;;
fail)
    echo 'WARN something' >&2
    echo 'FATAL	no database' >&2
    exit 1
    ;;
hang) sleep 1000 ;;
*) cat "$folder/report" ;;
esac
