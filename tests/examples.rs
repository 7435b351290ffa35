//! The examples that the packages bring, read strictly: what they name exists, agrees with the rest and with the program.
//! That they run is in `dist.rs` and `guard/fleet.rs`.

use std::collections::BTreeSet;
use std::fs;

use clap::Parser as _;
use serde_json::{Value, json};

use crate::support::cmd::{Cmd, which};
use crate::support::packages::OPENSSL;
use crate::support::pki::Authority;
use crate::support::{add_user, misses, program, root, scratch, skips};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const KUBERNETES: &str = "xtask/packaging/kubernetes.yaml";
const COMPOSE: &str = "xtask/packaging/compose/compose.yaml";

/// What Kubernetes knows of the objects that the example has. A word that is not here is misspelt, or wants a line.
const KINDS: [(&str, &str, &[&str]); 5] = [
    ("v1", "Namespace", &[]),
    ("v1", "ConfigMap", &["data"]),
    ("v1", "Service", &["spec"]),
    ("apps/v1", "Deployment", &["spec"]),
    ("apps/v1", "DaemonSet", &["spec"]),
];
const POD: [&str; 10] = [
    "automountServiceAccountToken",
    "containers",
    "dnsPolicy",
    "hostNetwork",
    "nodeSelector",
    "priorityClassName",
    "restartPolicy",
    "securityContext",
    "terminationGracePeriodSeconds",
    "volumes",
];
const CONTAINER: [&str; 9] =
    ["name", "image", "args", "env", "ports", "livenessProbe", "readinessProbe", "securityContext", "volumeMounts"];

/// The documents of a YAML file; nothing, with a word about it, where no reader is installed.
fn yaml(file: &str) -> Option<Vec<Value>> {
    // It comes with docker-compose.
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
    let text = fs::read_to_string(root().join(file)).unwrap();
    let python = ["/usr/bin/python3", "python3"]
        .into_iter()
        .find(|python| which(python).is_some() && Cmd::new(python).args(["-c", "import yaml"]).run().is_ok());
    let Some(python) = python else {
        skips::skip("not installed: python3-yaml");
        return None;
    };
    let read = Cmd::new(python).args(["-c", script]).input(text).run().unwrap();
    Some(serde_json::from_str(&read).unwrap())
}

fn words<'v>(list: &'v Value, key: &str) -> BTreeSet<&'v str> {
    list.as_array().into_iter().flatten().map(|one| one[key].as_str().unwrap()).collect()
}

#[track_caller]
fn only(object: &Value, known: &[&str]) {
    for key in object.as_object().unwrap().keys() {
        assert!(known.contains(&key.as_str()), "{key} in {object}");
    }
}

fn find<'v>(all: &'v [Value], kind: &str, name: &str) -> &'v Value {
    let found = all.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[test]
fn the_example_for_kubernetes_is_whole() {
    let Some(all) = yaml(KUBERNETES) else { return };
    for one in &all {
        let kind = KINDS.iter().find(|(api, kind, _)| one["apiVersion"] == *api && one["kind"] == *kind);
        let (_, kind, own) = kind.unwrap_or_else(|| panic!("{one}"));
        only(one, &[&["apiVersion", "kind", "metadata"], *own].concat());
        only(&one["metadata"], &["name", "namespace", "labels"]);
        assert_eq!(one["metadata"]["namespace"], if *kind == "Namespace" { json!(null) } else { json!("registry") });
    }
    let secrets = fs::read_to_string(root().join(KUBERNETES)).unwrap();
    let workloads: Vec<_> =
        all.iter().filter(|one| one["kind"] == "Deployment" || one["kind"] == "DaemonSet").collect();
    assert_eq!(workloads.len(), 3);
    for workload in &workloads {
        let (spec, template) = (&workload["spec"], &workload["spec"]["template"]);
        only(spec, &["replicas", "strategy", "selector", "template"]);
        assert_eq!(spec["selector"]["matchLabels"], template["metadata"]["labels"]);
        let pod = &template["spec"];
        only(pod, &POD);
        // All three on the same node, or the guard guards nobody.
        assert_eq!(pod["nodeSelector"], workloads[0]["spec"]["template"]["spec"]["nodeSelector"]);
        let volumes = words(&pod["volumes"], "name");
        for volume in pod["volumes"].as_array().unwrap() {
            if let Some(name) = volume["configMap"]["name"].as_str() {
                find(&all, "ConfigMap", name);
            } else if let Some(name) = volume["secret"]["secretName"].as_str() {
                assert!(secrets.contains(&format!(" {name} --from-")) || secrets.contains(&format!(" {name} --cert")));
            } else {
                assert!(volume["hostPath"]["path"].is_string(), "{volume}");
            }
        }
        for container in pod["containers"].as_array().unwrap() {
            only(container, &CONTAINER);
            assert_eq!(words(&container["volumeMounts"], "name"), volumes, "{container}");
            let image = container["image"].as_str().unwrap();
            assert!(image == "registry:2" || image == format!("portcullis:{VERSION}"), "{image}");
            let Some(args) = container["args"].as_array() else { continue };
            let args = args.iter().map(|arg| arg.as_str().unwrap());
            let parsed = portcullis::cli::Cli::try_parse_from(std::iter::once("portcullis").chain(args));
            assert!(parsed.is_ok(), "{container}");
        }
    }
}

#[test]
fn the_parts_of_the_example_for_kubernetes_agree() {
    if misses(&[OPENSSL]) {
        return;
    }
    let Some(all) = yaml(KUBERNETES) else { return };
    let config = find(&all, "ConfigMap", "portcullis")["data"]["portcullis.toml"].as_str().unwrap();
    let container =
        |kind: &str, name: &str| find(&all, kind, name)["spec"]["template"]["spec"]["containers"][0].clone();
    let (gate, guard) = (container("Deployment", "portcullis"), container("DaemonSet", "portcullis-guard"));

    let port = gate["ports"][0]["containerPort"].as_u64().unwrap();
    assert!(config.contains(&format!("address = \"0.0.0.0:{port}\"")), "{config}");
    let service = &find(&all, "Service", "portcullis")["spec"];
    assert_eq!(service["ports"][0]["targetPort"], gate["ports"][0]["name"]);
    let labels = &find(&all, "Deployment", "portcullis")["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&service["selector"], labels);
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let get = &gate[probe]["httpGet"];
        assert_eq!(get["path"], path);
        let admin = format!("admin = \"{}:{}\"", get["host"].as_str().unwrap(), get["port"]);
        assert!(config.contains(&admin), "{admin} in {config}");
    }
    let registry = container("Deployment", "registry");
    let address = registry["env"][0]["value"].as_str().unwrap();
    assert!(config.contains(&format!("upstreams = [\"http://{address}\"]")) && config.contains("port = 5000"));
    assert!(address.ends_with(":5000") && registry.get("readinessProbe").is_none());
    assert_eq!(guard["securityContext"]["privileged"], true);
    for volume in ["bpf", "cgroup", "config"] {
        assert!(words(&guard["volumeMounts"], "name").contains(volume));
    }

    // The program takes the file, with the variables of the image and of the pod.
    let dir = scratch("kubernetes").unwrap();
    let identity = Authority::create(dir.path(), "ca").unwrap().issue("tls", &["registry.example.com"]).unwrap();
    let users = add_user(program(), dir.path(), "alice", "open sesame").unwrap();
    let mut text = config.to_owned();
    for (from, to) in
        [("tls/tls.crt", &identity.cert), ("tls/tls.key", &identity.key), ("users/users.htpasswd", &users)]
    {
        let from = format!("/secrets/{from}");
        assert!(text.contains(&from));
        text = text.replace(&from, &to.display().to_string());
    }
    let file = dir.path().join("portcullis.toml");
    fs::write(&file, text).unwrap();
    let mut check = Cmd::new(program()).args(["check", "--config"]).arg(&file);
    check = check.env("PORTCULLIS_LISTEN", "0.0.0.0:80").env("PORTCULLIS_ALLOW_PLAINTEXT_CREDENTIALS", "true");
    for variable in gate["env"].as_array().unwrap() {
        check = check.env(variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap());
    }
    let checked = check.output().unwrap();
    assert!(checked.status.success() && checked.text().contains(&format!(":{port}")), "{}", checked.everything());
}

#[test]
fn the_example_for_docker_compose_names_this_version_and_one_address() {
    let Some(all) = yaml(COMPOSE) else { return };
    let services = &all[0]["services"];
    for name in ["auth", "gate"] {
        assert_eq!(services[name]["image"], format!("portcullis:{VERSION}"));
    }
    let address = services["registry"]["networks"]["inside"]["ipv4_address"].as_str().unwrap();
    assert_eq!(services["gate"]["environment"]["BACKEND"], format!("http://{address}:5000"));
    let text = fs::read_to_string(root().join(COMPOSE)).unwrap();
    assert!(text.contains(&format!("portcullis guard enforce --protect {address}:5000")));
    assert!(services["registry"].get("ports").is_none(), "the registry publishes a port");
    assert_eq!(services["gate"]["network_mode"], "host");
    for known in services["gate"]["environment"].as_object().unwrap().keys() {
        let spoken = ["BACKEND", "AUTH_BACKEND"].contains(&known.as_str()) || known.starts_with("PORTCULLIS_");
        assert!(spoken, "{known}");
    }
}
