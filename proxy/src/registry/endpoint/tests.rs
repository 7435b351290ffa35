use proptest::prelude::*;

use super::*;

fn digest() -> String {
    format!("sha256:{}", "0f".repeat(32))
}

fn ok(method: &str, target: &str) -> Classified {
    classify(method, target).unwrap_or_else(|error| panic!("{method} {target}: {error:?}"))
}

fn scopes(method: &str, target: &str) -> String {
    ok(method, target).access.iter().map(Access::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_table() {
    let d = digest();
    for (method, path, kind, scope) in [
        ("GET", "/v2/".to_owned(), "base", ""),
        ("HEAD", "/v2/".to_owned(), "base", ""),
        ("GET", "/v2".to_owned(), "base", ""),
        ("GET", "/_ping".to_owned(), "ping", ""),
        ("HEAD", "/v1/_ping".to_owned(), "ping", ""),
        ("GET", "/v2/_catalog".to_owned(), "catalog", "registry:catalog:*"),
        ("GET", "/v2/t/sk/tags/list".to_owned(), "tags", "repository:t/sk:pull"),
        ("GET", "/v2/a/manifests/latest".to_owned(), "manifest", "repository:a:pull"),
        ("HEAD", format!("/v2/a/manifests/{d}"), "manifest", "repository:a:pull"),
        ("PUT", "/v2/a/manifests/latest".to_owned(), "manifest", "repository:a:push"),
        ("DELETE", format!("/v2/a/manifests/{d}"), "manifest", "repository:a:delete"),
        ("GET", format!("/v2/a/b/blobs/{d}"), "blob", "repository:a/b:pull"),
        ("HEAD", format!("/v2/a/b/blobs/{d}"), "blob", "repository:a/b:pull"),
        ("DELETE", format!("/v2/a/b/blobs/{d}"), "blob", "repository:a/b:delete"),
        ("POST", "/v2/a/blobs/uploads/".to_owned(), "upload-start", "repository:a:push"),
        ("GET", "/v2/a/blobs/uploads/f4b6-1".to_owned(), "upload", "repository:a:push"),
        ("HEAD", "/v2/a/blobs/uploads/f4b6-1".to_owned(), "upload", "repository:a:push"),
        ("PATCH", "/v2/a/blobs/uploads/f4b6-1?_state=x-_%3D".to_owned(), "upload", "repository:a:push"),
        ("PUT", format!("/v2/a/blobs/uploads/f4b6-1?_state=x&digest={d}"), "upload", "repository:a:push"),
        ("DELETE", "/v2/a/blobs/uploads/f4b6-1".to_owned(), "upload", "repository:a:push"),
        ("GET", format!("/v2/a/referrers/{d}?artifactType=a%2Fb"), "referrers", "repository:a:pull"),
    ] {
        let classified = ok(method, &path);
        assert_eq!((classified.endpoint.as_str(), scopes(method, &path).as_str()), (kind, scope), "{method} {path}");
        assert_eq!(classified.target, path);
        assert_eq!(classified.endpoint.is_public(), kind == "ping");
        assert_eq!(classified.endpoint.is_upload(), kind.starts_with("upload"));
    }
}

#[test]
fn names_made_of_the_grammars_own_words() {
    let d = digest();
    for (path, name, kind) in [
        ("/v2/a/manifests/b/manifests/tags".to_owned(), "a/manifests/b", "manifest"),
        ("/v2/foo/bar/manifests/manifests/tags".to_owned(), "foo/bar/manifests", "manifest"),
        ("/v2/a/blobs/uploads/manifests/list".to_owned(), "a/blobs/uploads", "manifest"),
        ("/v2/a/blobs/uploads/tags/list".to_owned(), "a/blobs/uploads", "tags"),
        ("/v2/tags/list/tags/list".to_owned(), "tags/list", "tags"),
        ("/v2/manifests/manifests/manifests".to_owned(), "manifests", "manifest"),
        (format!("/v2/blobs/uploads/blobs/{d}"), "blobs/uploads", "blob"),
        (format!("/v2/v2/referrers/{d}"), "v2", "referrers"),
        ("/v2/a/blobs/uploads/blobs/uploads/list".to_owned(), "a/blobs/uploads", "upload"),
    ] {
        let method = "GET";
        let classified = ok(method, &path);
        assert_eq!(classified.endpoint.repository().map(RepositoryName::as_str), Some(name), "{path}");
        assert_eq!(classified.endpoint.as_str(), kind, "{path}");
    }
}

#[test]
fn paths_that_are_no_endpoint() {
    let d = digest();
    for path in [
        "",
        "/",
        "*",
        "/v2//",
        "//v2/",
        "/v2/.",
        "/v2/..",
        "/V2/",
        "/v2/a",
        "/v2/a/",
        "/v1/",
        "/v1/search",
        "/v1/_ping/",
        "/_ping/",
        "/_ping%00",
        "/v2/_ping",
        "/v2/_catalog/",
        "/v2/_Catalog",
        "/v2/catalog",
        "/healthz",
        "/debug/vars",
        "/metrics",
        "/v3/",
        "http://registry/v2/",
        "v2/",
        "/v2/tags/list",
        "/v2//tags/list",
        "/v2/a/tags/",
        "/v2/a/tags/latest",
        "/v2/a/tags/list/",
        "/v2/A/tags/list",
        "/v2/a:5000/b/tags/list",
        "/v2/a/../b/tags/list",
        "/v2/a/./tags/list",
        "/v2/a%2Fb/tags/list",
        "/v2/a//tags/list",
        "/v2/a\\b/tags/list",
        "/v2/a/tags/list#x",
        "/v2/\u{fc}/tags/list",
        "/v2/a b/tags/list",
        "/v2/a;x=y/tags/list",
        "/v2/a\0/tags/list",
        "/v2/a/manifests/",
        "/v2/a/manifests/.",
        "/v2/a/manifests/..",
        "/v2/manifests/x",
        "/v2/a/manifests/x/",
        "/v2/a/manifests/sha256:00",
        "/v2/a/manifests/x%2e",
        "/v2/a/manifests/sha1:00",
        "/v2/a/blobs/",
        "/v2/a/blobs/latest",
        "/v2/a/blobs/uploads",
        "/v2/a/blobs/uploads//",
        "/v2/blobs/uploads/",
        "/v2/blobs/uploads/x",
        "/v2/a/blobs/uploads/.",
        "/v2/a/blobs/uploads/..",
        "/v2/a/blobs/uploads/a..b",
        "/v2/a/blobs/uploads/.a",
        "/v2/a/blobs/uploads/x/y",
        "/v2/a/blobs/uploads/a+b",
        "/v2/a/blobs/uploads/a%2e",
        "/v2/a/uploads/x",
        "/v2/a/referrers/",
        "/v2/a/referrers/latest",
        "/v2/a/_trust/tuf/root.json",
        "/v2/a/blobs/uploads/totalandcompletejunk++$$-==",
        "/v2/../v2/",
        "/v2/a/manifests/latest/../x",
        "/./v2/",
        "/v2/;",
        "/v2/\t",
        "/v2/\r\n",
    ] {
        for method in ["GET", "POST", "PUT"] {
            let error = classify(method, path).unwrap_err();
            assert_eq!(error.status(), 404, "{method} {path:?}");
            assert!(!error.message().is_empty());
        }
    }
    for (target, code) in [
        ("/v2/A/manifests/x".to_owned(), Code::NameInvalid),
        ("/v2/a/manifests/.INVALID".to_owned(), Code::ManifestUnknown),
        ("/v2/a/blobs/uploads".to_owned(), Code::BlobUnknown),
        ("/v2/a/blobs/uploads/$".to_owned(), Code::BlobUploadUnknown),
        (format!("/v2/a/blobs/{}", d.to_uppercase()), Code::BlobUnknown),
        ("/x".to_owned(), Code::NameUnknown),
    ] {
        assert_eq!(classify("GET", &target).unwrap_err().code(), code, "{target}");
    }
    let long = "u".repeat(MAX_UPLOAD_ID_BYTES + 1);
    assert!(classify("GET", &format!("/v2/a/blobs/uploads/{long}")).is_err());
}

#[test]
fn methods_that_are_not_allowed() {
    for (methods, path, allow) in [
        (&["POST", "PUT", "DELETE", "PATCH", "OPTIONS"][..], "/v2/", "GET, HEAD"),
        (&["POST"], "/_ping", "GET, HEAD"),
        (&["DELETE"], "/v2/_catalog", "GET, HEAD"),
        (&["PUT", "DELETE"], "/v2/a/tags/list", "GET, HEAD"),
        (&["POST", "PATCH", "get", "", "GET ", "TRACE"], "/v2/a/manifests/x", "GET, HEAD, PUT, DELETE"),
        (&["GET", "HEAD", "PUT", "PATCH", "DELETE"], "/v2/a/blobs/uploads/", "POST"),
        (&["POST", "OPTIONS"], "/v2/a/blobs/uploads/x", "GET, HEAD, PATCH, PUT, DELETE"),
    ] {
        for method in methods {
            let error = classify(method, path).unwrap_err();
            assert_eq!(error, Unknown::MethodNotAllowed { allow }, "{method} {path}");
            assert_eq!((error.status(), error.code()), (405, Code::Unsupported));
        }
    }
}

#[test]
fn both_real_mount_forms() {
    let d = digest();
    let encoded = d.replace(':', "%3A");
    for (query, rest) in [
        (format!("mount={d}&from=t/sk"), ""),
        (format!("from=t%2Fsk&mount={encoded}"), ""),
        (format!("from=t%2fsk&ns=docker.io&mount={d}"), "?ns=docker.io"),
    ] {
        let target = format!("/v2/team/app/blobs/uploads/?{query}");
        let classified = ok("POST", &target);
        let mount = classified.mount.clone().unwrap();
        assert_eq!((mount.digest.as_str(), mount.from.as_str()), (d.as_str(), "t/sk"));
        assert_eq!(scopes("POST", &target), "repository:team/app:push repository:t/sk:pull");
        assert_eq!(classified.target, target, "as the client wrote it");
        let without = format!("/v2/team/app/blobs/uploads/{rest}");
        assert_eq!(classified.target_without_mount(), without);
        assert_eq!(ok("POST", &without).mount, None);
    }
}

#[test]
fn half_a_mount_is_left_out() {
    let d = digest();
    for (query, target) in [
        (format!("mount={d}"), "/v2/a/blobs/uploads/".to_owned()),
        ("from=t/sk".to_owned(), "/v2/a/blobs/uploads/".to_owned()),
        (format!("mount={d}&digest={d}"), format!("/v2/a/blobs/uploads/?digest={d}")),
    ] {
        let classified = ok("POST", &format!("/v2/a/blobs/uploads/?{query}"));
        assert_eq!((classified.mount.as_ref(), &classified.target), (None, &target));
        assert_eq!(classified.access.len(), 1);
        assert_eq!(classified.target_without_mount(), target);
    }
}

#[test]
fn queries_belong_to_their_endpoints() {
    let d = digest();
    for (method, target) in [
        ("GET", "/v2/?n=1".to_owned()),
        ("GET", "/_ping?x=1".to_owned()),
        ("GET", "/_ping?ns=a".to_owned()),
        ("GET", "/v2/a/manifests/x?digest=y".to_owned()),
        ("GET", format!("/v2/a/blobs/{d}?mount={d}&from=b")),
        ("PUT", format!("/v2/a/blobs/uploads/x?mount={d}&from=b")),
        ("POST", format!("/v2/a/blobs/uploads/?mount={d}&from=b&from=c")),
        ("POST", format!("/v2/a/blobs/uploads/?mount={d}&%66rom=c")),
        ("POST", format!("/v2/a/blobs/uploads/?mount={d}&from=b;from=c")),
        ("POST", "/v2/a/blobs/uploads/?_state=x".to_owned()),
        ("GET", "/v2/a/tags/list?n=1?last=2".to_owned()),
        ("GET", "/v2/a/tags/list?n=1#x".to_owned()),
        ("GET", "/v2/?access_token=x".to_owned()),
    ] {
        assert_eq!(classify(method, &target).unwrap_err().status(), 400, "{method} {target}");
    }
    assert_eq!(ok("GET", "/v2/?").target, "/v2/");
    assert_eq!(ok("GET", "/v2/a/tags/list?n=50&last=v1").target, "/v2/a/tags/list?n=50&last=v1");
    assert_eq!(ok("GET", "/v2/_catalog?last=&n=100").target, "/v2/_catalog?last=&n=100");
}

fn methods() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"][..])
}

/// Targets near the grammar: real pieces in any order, with and without dirt.
fn targets() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "v2", "a", "team", "tags", "list", "manifests", "blobs", "uploads", "referrers", "_catalog", "latest", "", "..", ".", "%2e",
        ]).prop_map(str::to_owned),
        1 => Just(digest()),
        1 => "[a-zA-Z0-9._=:%~ü-]{1,6}",
    ];
    let pair = prop_oneof![
        3 => prop::sample::select(vec!["n=1", "last=a%2Fb", "from=t%2Fsk", "from=x", "ns=a.b:1", "_state=ab%3D", "", "n", "x=y"]).prop_map(str::to_owned),
        1 => Just(format!("mount={}", digest())),
        1 => Just(format!("digest={}", digest().replace(':', "%3A"))),
        1 => "[a-z_%=]{1,8}",
    ];
    (prop::collection::vec(piece, 0..7), prop::collection::vec(pair, 0..4)).prop_map(|(path, query)| {
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        format!("/v2/{}{query}", path.join("/"))
    })
}

fn valid_targets() -> impl Strategy<Value = (&'static str, String)> {
    let name = r"[a-z0-9]{1,3}([._-][a-z0-9]{1,2})?(/(tags|manifests|blobs|uploads|[a-z0-9]{1,3})){0,3}";
    let query = prop::sample::subsequence(
        vec![
            "from=t%2Fsk".to_owned(),
            format!("mount={}", digest()),
            "ns=x.y".to_owned(),
            format!("digest={}", digest()),
        ],
        0..=4,
    )
    .prop_shuffle();
    (name, "[A-Za-z0-9_][A-Za-z0-9._-]{0,5}", query, 0..4u8).prop_map(|(name, tag, query, kind)| match kind {
        0 => ("GET", format!("/v2/{name}/manifests/{tag}")),
        1 => ("GET", format!("/v2/{name}/tags/list?last={tag}&n=5")),
        2 => ("HEAD", format!("/v2/{name}/blobs/{}", digest())),
        _ => ("POST", format!("/v2/{name}/blobs/uploads/?{}", query.join("&"))),
    })
}

fn reads_the_same(method: &str, first: &Classified) -> Result<(), TestCaseError> {
    let second = classify(method, &first.target);
    prop_assert_eq!(second.as_ref(), Ok(first));
    let without = classify(method, &first.target_without_mount());
    prop_assert!(without.as_ref().is_ok_and(|c| c.mount.is_none() && c.endpoint == first.endpoint), "{:?}", without);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_classified_reads_the_same_again(method in methods(), target in targets()) {
        if let Ok(first) = classify(method, &target) {
            reads_the_same(method, &first)?;
        }
    }

    #[test]
    fn valid_targets_are_classified_and_read_the_same((method, target) in valid_targets()) {
        let first = classify(method, &target);
        prop_assert!(first.is_ok(), "{} {:?}", target, first);
        reads_the_same(method, &first.unwrap())?;
    }

    #[test]
    fn a_path_that_could_be_read_twice_is_refused(method in methods(), target in targets(), at in any::<prop::sample::Index>(),
        dirt in prop::sample::select(&["%", "%2f", "%2e%2e", "//", "/../", "/./", "\\", "#", "\0", "\n", "\r", "\x7f", " ", "\u{fc}", ";", "\t"][..])) {
        let (path, _) = target.split_once('?').unwrap_or((&target, ""));
        let mut cut = at.index(path.len() + 1);
        while !path.is_char_boundary(cut) {
            cut -= 1;
        }
        let dirty = format!("{}{dirt}{}", &path[..cut], &path[cut..]);
        prop_assert!(classify(method, &dirty).is_err(), "{:?}", dirty);
    }

    #[test]
    fn no_target_panics(method in ".{0,8}", target in ".{0,80}") {
        if let Ok(classified) = classify(&method, &target) {
            prop_assert!(classified.target.is_ascii());
        }
    }

    #[test]
    fn every_step_up_is_refused(method in methods(), target in targets()) {
        let (path, _) = target.split_once('?').unwrap_or((&target, ""));
        if path.split('/').skip(1).any(|segment| segment == "." || segment == "..") || path.contains("//") || path.contains('%') {
            prop_assert!(classify(method, &target).is_err());
        }
    }
}
