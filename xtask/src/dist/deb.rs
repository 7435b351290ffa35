//! The Debian package: program, units, sample configuration, manual pages, completions; a user of its own.
//!
//! Nothing is started on installation: there is no registry, certificate or user yet that it could serve.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{Release, install, put};
use crate::lab::cmd::Cmd;
use crate::workspace;

const SHELLS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/portcullis"),
    ("zsh", "usr/share/zsh/vendor-completions/_portcullis"),
    ("fish", "usr/share/fish/vendor_completions.d/portcullis.fish"),
];

/// Files to start from, beside the documentation.
const EXAMPLES: [&str; 6] = [
    "compose/compose.yaml",
    "fleet/haproxy.cfg",
    "fleet/keepalived.conf",
    "kubernetes.yaml",
    "monitoring/alerts.yml",
    "monitoring/dashboard.json",
];

/// Builds it and says where it is.
pub(super) fn build(release: &Release<'_>) -> anyhow::Result<PathBuf> {
    let tree = release.room.join("deb");
    files(release, &tree)?;
    control(release, &tree)?;
    let deb = release.out.join(format!("portcullis_{}_{}.deb", release.version, release.architecture));
    // Members of the archive carry no time of this build: the same content gives the same file.
    let cmd = Cmd::new("dpkg-deb").env("SOURCE_DATE_EPOCH", "0").args(["--root-owner-group", "-Zxz", "--build"]);
    cmd.arg(&tree).arg(&deb).step("dpkg-deb --build")?;
    Ok(deb)
}

fn files(release: &Release<'_>, tree: &Path) -> anyhow::Result<()> {
    let root = workspace::root();
    let packaging = root.join("xtask/packaging");
    install(release.program, &tree.join("usr/bin/portcullis"), 0o755)?;
    for unit in ["portcullis.service", "portcullis.socket", "portcullis-guard.service"] {
        install(&packaging.join(unit), &tree.join("lib/systemd/system").join(unit), 0o644)?;
    }
    install(&packaging.join("portcullis.toml"), &tree.join("etc/portcullis/portcullis.toml"), 0o640)?;
    for (shell, path) in SHELLS {
        let script = Cmd::new(release.program).args(["completions", shell]).run()?;
        put(&tree.join(path), format!("{}\n", script.trim_end()).as_bytes(), 0o644)?;
    }
    let man = tree.join("usr/share/man");
    let (pages, file_pages) = (man.join("man1"), man.join("man5"));
    Cmd::new(release.program).args(["man", "--out"]).arg(&pages).run()?;
    let written = pages.join("portcullis.toml.5");
    let page = fs::read(&written).with_context(|| format!("cannot read {}", written.display()))?;
    put(&file_pages.join("portcullis.toml.5"), &page, 0o644)?;
    fs::remove_file(&written).with_context(|| format!("cannot move {}", written.display()))?;
    let doc = tree.join("usr/share/doc/portcullis");
    for name in ["README.md", "SECURITY.md"] {
        install(&root.join(name), &doc.join(name), 0o644)?;
    }
    for name in EXAMPLES {
        install(&packaging.join(name), &doc.join("examples").join(name), 0o644)?;
    }
    install(&packaging.join("seccomp-io_uring.json"), &doc.join("seccomp-io_uring.json"), 0o644)?;
    install(&root.join("LICENSE"), &doc.join("copyright"), 0o644)?;
    install(&root.join("CHANGELOG.md"), &doc.join("changelog"), 0o644)?;
    let listed = fs::read_dir(&pages).with_context(|| format!("cannot read {}", pages.display()))?;
    let mut compress = vec![doc.join("changelog"), file_pages.join("portcullis.toml.5")];
    for page in listed {
        compress.push(page.context("cannot list the manual pages")?.path());
    }
    Cmd::new("gzip").args(["-9", "--no-name"]).args(&compress).run().map(drop)
}

fn control(release: &Release<'_>, tree: &Path) -> anyhow::Result<()> {
    let kilobytes = fs::metadata(release.program).context("cannot read the program")?.len().div_ceil(1024);
    let text = format!(
        "Package: portcullis\n\
         Version: {}\n\
         Architecture: {}\n\
         Maintainer: The Portcullis developers <maintainers@portcullis.invalid>\n\
         Installed-Size: {kilobytes}\n\
         Depends: passwd\n\
         Suggests: docker-registry, certbot\n\
         Section: net\n\
         Priority: optional\n\
         Description: hardened gate for private Docker/OCI registries\n \
         Asks for a login on every request, over TLS, before anything reaches the registry,\n \
         and closes the registry's own port in the kernel, so that there is no way round.\n",
        release.version, release.architecture
    );
    let debian = tree.join("DEBIAN");
    put(&debian.join("control"), text.as_bytes(), 0o644)?;
    put(&debian.join("conffiles"), b"/etc/portcullis/portcullis.toml\n", 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        install(&workspace::root().join("xtask/packaging/deb").join(script), &debian.join(script), 0o755)?;
    }
    Ok(())
}
