#!/bin/sh
# Runs rpmlint over packages: packaging/rpmlint.sh build/packages/*.rpm
#
# Names in the payload that nfpm writes begin with a slash, which rpm does not mind. But
# rpmlint unpacks with cpio, which would then write to the machine's own folders.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
cat >"$bin/cpio" <<END
#!/bin/sh
exec $(command -v cpio) --no-absolute-filenames "\$@"
END
chmod +x "$bin/cpio"
PATH=$bin:$PATH rpmlint --config "$here/rpmlint.toml" "$@"
