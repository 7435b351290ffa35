//! The list of what is inside (SPDX 2.3, JSON), from what cargo itself resolved for the program.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Release, put};
use crate::workspace;

/// Writes it and says where it is.
pub(super) fn write(release: &Release<'_>) -> anyhow::Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let args = ["metadata", "--format-version", "1", "--locked", "--filter-platform", &triple];
    let text = workspace::cargo().args(args).log(workspace::log("dist-metadata")?).output()?.ok()?.text();
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata gave no JSON")?;
    let linked = linked(&metadata);
    let packages: Vec<Value> = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|package| package["id"].as_str().is_some_and(|id| linked.contains(id)))
        .map(entry)
        .collect();
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("portcullis-{}", release.version),
        "documentNamespace": format!("https://portcullis.invalid/spdx/{}-{}", release.version, release.architecture),
        "creationInfo": {"created": "1970-01-01T00:00:00Z", "creators": ["Tool: cargo-xtask-dist"]},
        "documentDescribes": ["SPDXRef-portcullis"],
        "packages": packages,
    });
    let path = release.out.join(format!("portcullis_{}_{}.spdx.json", release.version, release.architecture));
    put(&path, serde_json::to_string_pretty(&document)?.as_bytes(), 0o644)?;
    Ok(path)
}

/// The packages that end up in the program: what it depends on, and they in turn, without what only tests or build
/// scripts use.
fn linked(metadata: &Value) -> BTreeSet<String> {
    let nodes = metadata["resolve"]["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = |id: &str| nodes.iter().find(|node| node["id"] == id);
    let program = metadata["packages"].as_array().into_iter().flatten().find(|package| package["name"] == "portcullis");
    let mut waiting: Vec<String> =
        program.and_then(|package| package["id"].as_str()).map(str::to_owned).into_iter().collect();
    let mut found = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        let dependencies = named(&id).and_then(|node| node["deps"].as_array()).into_iter().flatten();
        let normal = |dependency: &&Value| {
            dependency["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
        };
        let next = dependencies.filter(normal).filter_map(|dependency| dependency["pkg"].as_str());
        waiting.extend(next.filter(|id| !found.contains(*id)).map(str::to_owned));
        found.insert(id);
    }
    found
}

fn entry(package: &Value) -> Value {
    let text = |key: &str| package[key].as_str().unwrap_or("NOASSERTION").to_owned();
    let (name, version) = (text("name"), text("version"));
    let id: String =
        format!("{name}-{version}").chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let ours = package["source"].is_null();
    json!({
        "SPDXID": if name == "portcullis" { "SPDXRef-portcullis".to_owned() } else { format!("SPDXRef-{id}") },
        "name": name,
        "versionInfo": version,
        "licenseDeclared": text("license").replace('/', " OR "),
        "downloadLocation": if ours { text("repository") } else { format!("https://crates.io/crates/{name}/{version}") },
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",
            "referenceLocator": format!("pkg:cargo/{name}@{version}"),
        }],
    })
}
