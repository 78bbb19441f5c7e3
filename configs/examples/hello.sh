#!/bin/sh
# The example workload: serves the pod's host name on port 8080, logs every request, and ends at once when asked to.
set -eu
mkdir -p /tmp/www
hostname > /tmp/www/index.html
httpd -f -vv -p 8080 -h /tmp/www &
server=$!
trap 'kill "$server"; exit 0' TERM INT
echo "hello: $(hostname) serves on port 8080"
wait "$server"
