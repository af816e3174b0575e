#!/usr/bin/env bash
# Makes an authority, and a certificate for each name given: NAME.pem and NAME-key.pem. To try encryption with; where an
# authority exists, use that.
#
#   ./certificates.sh kiln fdb
set -euo pipefail
umask 077

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
    -subj '/CN=authority of this cluster' -keyout authority-key.pem -out authority.pem
for name in "$@"; do
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
        -subj "/CN=$name" -keyout "$name-key.pem" -out "$name.csr"
    openssl x509 -req -in "$name.csr" -CA authority.pem -CAkey authority-key.pem -CAcreateserial \
        -days 365 -out "$name.pem"
    rm "$name.csr"
done
