#!/bin/sh
# fuzz.sh TIME: run each fuzz target of the module for TIME, such as 3s or 2m.
set -eu
cd "$(dirname "$0")/.."

# go test lists the names of a package's targets, then the package.
targets=$(go test -list '^Fuzz' ./... | awk '
	/^Fuzz/ { name[++n] = $1 }
	/^ok/   { for (i = 1; i <= n; i++) print $2, name[i]; n = 0 }')
if [ -z "$targets" ]; then
	echo 'no fuzz targets found' >&2
	exit 1
fi
echo "$targets" | while read -r package name; do
	echo "$package $name"
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$1" -fuzzminimizetime 5s "$package" </dev/null || exit 1
done
