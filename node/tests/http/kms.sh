#!/bin/sh
# A key service made of openssl, for tests. FOLDER/secret-N is version N of its only key, and
# FOLDER/newest says which version wraps; each operation is noted in FOLDER/calls.
# While FOLDER/away is there, it fails.
set -eu
folder=$1
read -r line
field() { printf '%s' "$line" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
operation=$(field operation)
echo "$operation" >> "$folder/calls"
if [ -e "$folder/away" ]; then
    echo "the service is away" >&2
    exit 1
fi
version=$(field key_id | sed 's/^test://')
cipher() { openssl enc "$@" -aes-256-cbc -pbkdf2 -a -A -pass "file:$folder/secret-$version"; }
case $operation in
identify)
    opens=
    for secret in "$folder"/secret-*; do
        opens="$opens${opens:+,}\"test:${secret##*/secret-}\""
    done
    echo "{\"key_id\":\"test:$(cat "$folder/newest")\",\"opens\":[$opens]}"
    ;;
wrap)
    text=$(field plaintext | cipher)
    echo "{\"wrapped\":\"$text\"}"
    ;;
unwrap)
    text=$(field wrapped | cipher -d)
    echo "{\"plaintext\":\"$text\"}"
    ;;
esac
