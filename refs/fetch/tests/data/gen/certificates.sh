#!/bin/sh
# Makes an authority and a server's certificate, valid from 2020 to 2120, in the folder above. The keys are for tests alone.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
cat > "$work/ca.cnf" <<EOF
[ca]
default_ca = d
[d]
database = $work/index
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = p
[p]
commonName = supplied
[req]
distinguished_name = n
[n]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
basicConstraints = critical, CA:FALSE
subjectAltName = DNS:localhost, DNS:files.example, IP:127.0.0.1
EOF
: > "$work/index"
sign() { openssl ca -batch -notext -config "$work/ca.cnf" -startdate 20200101000000Z -enddate 21200101000000Z "$@"; }
request() { openssl req -config "$work/ca.cnf" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "$@"; }
request -subj "/CN=d2o test authority" -keyout "$work/ca-key.pem" -out "$work/ca.csr"
sign -selfsign -extensions authority -keyfile "$work/ca-key.pem" -in "$work/ca.csr" -out ca.pem
request -subj "/CN=d2o test server" -keyout server-key.pem -out "$work/server.csr"
sign -extensions server -cert ca.pem -keyfile "$work/ca-key.pem" -in "$work/server.csr" -out server.pem
rm -r "$work"
