# Installs, upgrades, removes and purges the Debian package as root of its own mount namespace: what dpkg writes goes to
# overlays that end with this shell. $1: a scratch directory, $2: the package.
set -euo pipefail
room=$1/room deb=$2
mkdir "$room"
mount -t tmpfs none "$room"
for name in etc usr var; do
    mkdir "$room/$name" "$room/$name.work"
    mount -t overlay none -o "lowerdir=/$name,upperdir=$room/$name,workdir=$room/$name.work" "/$name"
done
# No systemd of the host hears of this.
mount -t tmpfs none /run
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive

# Nothing has to survive a power cut here.
dpkg() { command dpkg --force-unsafe-io "$@"; }
fail() { echo "$*" >&2 && exit 1; }

dpkg --install "$deb"
[ "$(command -v portcullis)" = /usr/bin/portcullis ] || fail "the program is not where it should be"
portcullis --version
[ "$(stat -c '%a %U %G' /etc/portcullis)" = "2750 root portcullis" ] || fail "$(stat /etc/portcullis)"
[ "$(stat -c '%a %U %G' /etc/portcullis/portcullis.toml)" = "640 root portcullis" ] || fail "the configuration is not closed"
[ "$(getent passwd portcullis | cut -d: -f7)" = /usr/sbin/nologin ] || fail "the user has a shell"
gzip -dc /usr/share/man/man1/portcullis-serve.1.gz | grep -q -- '\\-\\-htpasswd' || fail "the manual has no --htpasswd"
for command in $(portcullis --help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p' | grep -v help); do
    [ -s "/usr/share/man/man1/portcullis-$command.1.gz" ] || fail "no manual page of $command"
done
gzip -dc /usr/share/man/man5/portcullis.toml.5.gz | grep -q stale_if_error || fail "the manual of the file has no stale_if_error"
bash -c 'source /usr/share/bash-completion/completions/portcullis && complete -p portcullis'
for file in /usr/share/zsh/vendor-completions/_portcullis /usr/share/fish/vendor_completions.d/portcullis.fish; do
    grep -q auth-service $file || fail "$file knows no commands"
done
for unit in portcullis.service portcullis-guard.service portcullis.socket; do test -f /lib/systemd/system/$unit; done
for example in compose/compose.yaml kubernetes.yaml fleet/haproxy.cfg monitoring/alerts.yml monitoring/dashboard.json; do
    test -f /usr/share/doc/portcullis/examples/$example || fail "no example $example"
done
# Nothing that was packed belongs to whoever built it.
[ -z "$(dpkg -L portcullis | xargs stat -c '%U:%G' | grep -v -e root:root -e root:portcullis || true)" ]

# What an operator wrote survives an upgrade.
sed -i 's/registry.example.com/registry.test/' /etc/portcullis/portcullis.toml
dpkg --install "$deb"
grep -q registry.test /etc/portcullis/portcullis.toml || fail "the upgrade overwrote the configuration"

# Users and keys that somebody put there are not the package's to delete, nor is the user that owns them.
touch /etc/portcullis/users.htpasswd
dpkg --remove portcullis
test -f /etc/portcullis/portcullis.toml || fail "removing took the configuration"
dpkg --purge portcullis
test -f /etc/portcullis/users.htpasswd || fail "purging took a file of the operator's"
rm /etc/portcullis/users.htpasswd
dpkg --install "$deb"
dpkg --purge portcullis
for left in /etc/portcullis /usr/bin/portcullis /usr/share/doc/portcullis /lib/systemd/system/portcullis.service; do
    [ ! -e $left ] || fail "$left is still there"
done
! getent passwd portcullis || fail "the user is still there"
echo 'the end was reached'
