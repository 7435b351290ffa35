//! Two real registries over one store: images are pushed and pulled while one of the two dies.

use super::*;
use crate::support::packages::{REGISTRY, SETPRIV, SKOPEO};
use crate::support::registry::Registry;
use crate::support::skopeo::{Skopeo, Trust};
use crate::support::{image, misses, random};

#[test]
fn images_come_and_go_while_one_of_two_registries_dies() {
    if misses(&[REGISTRY, SKOPEO, SETPRIV]) {
        return;
    }
    let registry = Registry::start().unwrap();
    let mut sibling = Some(registry.sibling().unwrap());
    let (skopeo, other) = (Skopeo::new().unwrap(), sibling.as_ref().map(Registry::url).unwrap_or_default());
    let front = front("registry", &[registry.url(), other.clone()], "health_interval = \"0s\"\n");
    for round in 0..3 {
        if round == 1 {
            sibling = None;
        }
        let (there, back) = (scratch("image").unwrap(), scratch("image").unwrap());
        image::write(there.path(), &[1, 65_535, 3_000_001], random()).unwrap();
        let name = format!("{}/team/app:{round}", front.gate.addr());
        let explain = |error| panic!("round {round}: {error:#}\nthe gate wrote:\n{}", front.gate.log());
        let pushed = skopeo.push(there.path(), &name, Some(CREDS), Trust::Plain);
        pushed.and_then(|output| output.ok()).unwrap_or_else(explain);
        let pulled = skopeo.pull(&name, back.path(), Some(CREDS), Trust::Plain);
        pulled.and_then(|output| output.ok()).unwrap_or_else(explain);
        assert_eq!(image::compare(there.path(), back.path()).unwrap().blobs, 5);
    }
    assert!(sibling.is_none());
    let requests = |url: &str| front.metric(&["portcullis_upstream_requests_total{", url]).unwrap_or_default();
    assert!(requests(&registry.url()) > 10 && requests(&other) > 5, "both were used");
    assert!(front.gate.says("is out"), "{}", front.gate.log());
}
