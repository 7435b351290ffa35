use proptest::prelude::*;

use super::*;

/// The line of the 2014 walkthrough.
const OLD: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";

/// Made with `htpasswd -bn…` and `openssl passwd`; the password is `secret` unless said otherwise.
const KNOWN: [(&str, &str, Scheme); 11] = [
    ("$2y$04$uupkFy1MgR2MGQPBD1ZpCukgzGJs5j/IqSVVRugszir2O3SR/3Ouu", "secret", Scheme::Bcrypt),
    ("$2a$04$uupkFy1MgR2MGQPBD1ZpCukgzGJs5j/IqSVVRugszir2O3SR/3Ouu", "secret", Scheme::Bcrypt),
    ("$2b$04$uupkFy1MgR2MGQPBD1ZpCukgzGJs5j/IqSVVRugszir2O3SR/3Ouu", "secret", Scheme::Bcrypt),
    ("$2y$04$qOYIp.9ILUNe0uccxnFVJupQRH5VL/Heyoev4JYu7eglhGv/O/hha", "", Scheme::Bcrypt),
    ("$apr1$Cs6a.Vf9$kVVpQAQRyt4d.HLxsLShH/", "secret", Scheme::Apr1),
    ("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "secret", Scheme::Sha1),
    ("$5$abcdefgh$gruCpC7VkOTspMQTTSAR8mtlO9Upms.fwqE5y16JVM.", "secret", Scheme::Sha256Crypt),
    ("$5$rounds=1000$x$MwH1x3tv6pfJx.FrwforYF3VY24cFP1kjo6fe/LdghD", "secret", Scheme::Sha256Crypt),
    (
        "$6$abcdefgh$ltjgWl6579NluT/Vi1nwEvcil.G5Nbc4NiXZaNGStk8PSwGfQv72N2CKPPrVACtLtip/cZ/1GM/O6IND4WQhG.",
        "secret",
        Scheme::Sha512Crypt,
    ),
    (
        "$6$rounds=12345$abcdefghijklmnop$jgt7yMy0HUthH/ehVqW44ftJtKWl6j5EL6kcjHBulFaiN1RGF3PTqqA2e/R3CDoa.5/LVVzhU2ootxeNQNx0/.",
        "secret",
        Scheme::Sha512Crypt,
    ),
    (
        "$6$rounds=1000$aOWSZV/7Fs7dmgMF$oDYvhrj.Gp5zQKrrVDSwZClFTZ1pguhBOvosiu30IS8ndjracnuyQgKy/O9PQ63NSK0KhLpUR4BCBnXjiTS3G0",
        "secret",
        Scheme::Sha512Crypt,
    ),
];
const SEVENTY_TWO: &str = "$2y$04$XkY32WTJ5OrmA8NazVdDzuCGvy1cpHG2I8kbmKjnNHjo6rdagxICO";

fn file(text: &str) -> Htpasswd {
    Htpasswd::parse(text).unwrap_or_else(|errors| panic!("{errors:?}"))
}

#[test]
fn the_old_line_verifies() {
    let old = file(OLD);
    assert!(old.verify("testuser", b"testpassword"));
    for (user, password) in
        [("testuser", "testpasswor"), ("testuser", ""), ("Testuser", "testpassword"), ("", "testpassword")]
    {
        assert!(!old.verify(user, password.as_bytes()), "{user} {password}");
    }
}

#[test]
fn every_scheme_verifies() {
    for (text, password, scheme) in KNOWN {
        let hash = Hash::parse(text).unwrap();
        assert_eq!(hash.scheme(), scheme);
        assert!(hash.verify(password.as_bytes()), "{text}");
        for wrong in ["Secret", "secret ", "secre", "x"] {
            assert!(!hash.verify(wrong.as_bytes()), "{text} {wrong}");
        }
        assert!(!hash.verify(b"secret\0") && !hash.verify(b"secret\0x"), "{text}");
    }
}

#[test]
fn a_file_of_all_schemes() {
    let text: String = KNOWN.iter().enumerate().map(|(n, (hash, ..))| format!("u{n}:{hash}\n")).collect();
    let all = file(&text);
    assert_eq!(all.len(), KNOWN.len());
    for (n, (_, password, scheme)) in KNOWN.iter().enumerate() {
        assert!(all.verify(&format!("u{n}"), password.as_bytes()));
        assert!(!all.verify(&format!("u{n}"), b"wrong"));
        assert_eq!(all.users().nth(n).unwrap(), (format!("u{n}").as_str(), *scheme));
    }
    assert!(!all.verify("nobody", b"secret"));
}

#[test]
fn comments_blank_lines_crlf_and_a_third_field() {
    let some = file(
        "# head\r\n\r\n   \r\ntestuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.\r\n#x:y\nb:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=:note \t",
    );
    assert_eq!(some.users().map(|(user, _)| user).collect::<Vec<_>>(), ["testuser", "b"]);
    assert!(some.verify("testuser", b"testpassword") && some.verify("b", b"secret"));
    let none = file("# nobody yet\n");
    assert!(none.is_empty() && !none.verify("a", b"b") && none.dearest_cost_micros() == 0);
}

#[test]
fn every_broken_line_is_named_and_no_hash_is_shown() {
    let text = "good:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\nplain:hunter2\ndes:Qq5ZSyAXo2sds\nnocolonhunter2\n:{SHA}x\n\
                good:$apr1$Cs6a.Vf9$kVVpQAQRyt4d.HLxsLShH/\nempty:\nold:$1$abcdefgh$hunter2\n";
    let errors = Htpasswd::parse(text).unwrap_err();
    assert_eq!(errors.iter().map(|e| e.line).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7, 8]);
    let printed = errors.iter().map(|e| format!("{e} {e:?}\n")).collect::<String>();
    for secret in ["hunter2", "Qq5Z", "kVVp", "Cs6a"] {
        assert!(!printed.contains(secret), "{printed}");
    }
    for part in [
        "line 2: user \"plain\": the password is plain text or DES",
        "already on line 1",
        "no colon",
        "missing",
        "MD5-crypt",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    assert!(
        errors.iter().all(|e| e.reason.contains("portcullis user add") || e.reason.contains("delete")),
        "{printed}"
    );
}

#[test]
fn hashes_that_are_refused() {
    use HashError::*;
    let long_salt = format!("$5$abcdefghijklmnopq${}", "a".repeat(43));
    for (text, error) in [
        ("", Missing),
        ("hunter2", PlainOrDes),
        ("Qq5ZSyAXo2sds", PlainOrDes),
        (
            "$2x$04$uupkFy1MgR2MGQPBD1ZpCukgzGJs5j/IqSVVRugszir2O3SR/3Ouu",
            Foreign("bcrypt 2x (made by a broken implementation)"),
        ),
        ("$y$j9T$x$y", Foreign("yescrypt")),
        ("$argon2id$v=19$m=65536,t=2,p=1$x$y", Foreign("argon2")),
        ("{SSHA}abc", Foreign("salted {SSHA}")),
        ("{plain}abc", Foreign("plain text")),
        ("$zzz$", Unknown),
        ("{MD5}x", Unknown),
        ("$2y$04$uupkFy1MgR2MGQPBD1ZpCukgzGJs5j/IqSVVRugszir2O3SR/3Ou", Damaged),
        ("$2y$04$uupkFy1MgR2MGQPBD1ZpCukgzGJs5j/IqSVVRugszir2O3SR/3Ouuu", Damaged),
        ("$2y$4$uupkFy1MgR2MGQPBD1ZpCukgzGJs5j/IqSVVRugszir2O3SR/3Ouu", Damaged),
        ("$2y$+4$uupkFy1MgR2MGQPBD1ZpCukgzGJs5j/IqSVVRugszir2O3SR/3Ouu", Damaged),
        ("$2y$04$uupkFy1MgR2MGQPBD1Zp$ukgzGJs5j/IqSVVRugszir2O3SR/3Ouu", Damaged),
        ("$2y$04$ü", Damaged),
        ("$2y$04", Damaged),
        ("$2y$03$uupkFy1MgR2MGQPBD1ZpCukgzGJs5j/IqSVVRugszir2O3SR/3Ouu", Cost),
        ("$2y$17$uupkFy1MgR2MGQPBD1ZpCukgzGJs5j/IqSVVRugszir2O3SR/3Ouu", Cost),
        ("$2y$31$uupkFy1MgR2MGQPBD1ZpCukgzGJs5j/IqSVVRugszir2O3SR/3Ouu", Cost),
        ("$apr1$Cs6a.Vf9$kVVpQAQRyt4d.HLxsLShH", Damaged),
        ("$apr1$Cs6a.Vf9x$kVVpQAQRyt4d.HLxsLShH/", Damaged),
        ("$apr1$Cs6a!Vf9$kVVpQAQRyt4d.HLxsLShH/", Damaged),
        ("$apr1$kVVpQAQRyt4d.HLxsLShH/", Damaged),
        ("{SHA}5en6G6MezRroT3XKqkdPOmY/Bf", Damaged),
        ("{SHA}", Damaged),
        ("$5$abcdefgh$short", Damaged),
        (&long_salt, Damaged),
        ("$5$rounds=x$x$MwH1x3tv6pfJx.FrwforYF3VY24cFP1kjo6fe/LdghD", Damaged),
        ("$5$rounds=0999$x$MwH1x3tv6pfJx.FrwforYF3VY24cFP1kjo6fe/LdghD", Damaged),
        ("$5$rounds=999$x$MwH1x3tv6pfJx.FrwforYF3VY24cFP1kjo6fe/LdghD", Rounds),
        ("$5$rounds=1000001$x$MwH1x3tv6pfJx.FrwforYF3VY24cFP1kjo6fe/LdghD", Rounds),
        ("$5$rounds=999999999$x$MwH1x3tv6pfJx.FrwforYF3VY24cFP1kjo6fe/LdghD", Rounds),
        ("$5$rounds=99999999999999999999$x$MwH1x3tv6pfJx.FrwforYF3VY24cFP1kjo6fe/LdghD", Rounds),
        ("$5$x$MwH1x3tv6pfJx.FrwforYF3VY24cFP1kjo6fe/Ldg$D", Damaged),
    ] {
        assert_eq!(Hash::parse(text).map(|h| h.scheme()), Err(error), "{text}");
    }
}

#[test]
fn bcrypt_never_cuts_a_password() {
    let hash = Hash::parse(SEVENTY_TWO).unwrap();
    assert!(hash.verify(&[b'a'; 72]));
    assert!(!hash.verify(&[b'a'; 73]), "the 73rd byte is not ignored");
    assert!(!hash.verify(&[b'a'; 71]));
    assert!(hash_bcrypt(&[b'a'; 72], 4, [1; 16]).is_ok());
    for (password, cost, error) in [
        (&[b'a'; 73][..], 4, HashError::Password("is longer than the 72 bytes that bcrypt can hash")),
        (b"", 4, HashError::Password("is empty")),
        (b"a\0b", 4, HashError::Password("contains a NUL byte")),
        (b"a", 3, HashError::Cost),
        (b"a", 17, HashError::Cost),
    ] {
        assert_eq!(hash_bcrypt(password, cost, [1; 16]), Err(error));
    }
}

#[test]
fn a_password_over_the_bound_is_refused_at_once() {
    let slow = file(&format!("a:$6$rounds=1000000$x${}\n", "a".repeat(86)));
    assert!(!slow.verify("a", &[b'x'; MAX_PASSWORD_BYTES + 1]) && !slow.verify("b", b"x\0"));
}

#[test]
fn unknown_and_cheap_users_pay_for_the_dearest_hash() {
    let dear = hash_bcrypt(b"x", 9, [7; 16]).unwrap();
    let mixed = file(&format!("cheap:{{SHA}}5en6G6MezRroT3XKqkdPOmY/BfQ=\ndear:{dear}\n"));
    let schemes = |user| {
        let (own, decoy) = mixed.work(user);
        (own.map(Hash::scheme), decoy.map(Hash::scheme))
    };
    assert_eq!(schemes("dear"), (Some(Scheme::Bcrypt), None));
    assert_eq!(schemes("cheap"), (Some(Scheme::Sha1), Some(Scheme::Bcrypt)));
    assert_eq!(schemes("nobody"), (None, Some(Scheme::Bcrypt)));
    assert!(mixed.verify("cheap", b"secret") && mixed.verify("dear", b"x") && !mixed.verify("nobody", b"x"));
}

#[test]
fn debug_shows_no_hash() {
    let printed = format!("{:?}", file(OLD));
    assert!(printed.contains("apr1") && !printed.contains("X7QF") && !printed.contains("2tC1"), "{printed}");
}

#[test]
fn edits_keep_the_rest() {
    for (text, with, without) in [
        ("", "bob:H\n", ""),
        ("a:1\n", "a:1\nbob:H\n", "a:1\n"),
        ("a:1", "a:1\nbob:H\n", "a:1"),
        ("a:1\r\n", "a:1\r\nbob:H\r\n", "a:1\r\n"),
        ("a:1\r", "a:1\r\nbob:H\n", "a:1\r"),
        ("# c\n\nbob:old:note\n  \nz:9", "# c\n\nbob:H\n  \nz:9", "# c\n\n  \nz:9"),
        ("bob:old\r\nz:9\n", "bob:H\r\nz:9\n", "z:9\n"),
        ("z:9\nbob:old", "z:9\nbob:H", "z:9\n"),
        ("bob:1\nx:2\nbob:3\n", "bob:H\nx:2\n", "x:2\n"),
        ("#bob:1\nbobby:2\n bob:3\n", "#bob:1\nbobby:2\n bob:3\nbob:H\n", "#bob:1\nbobby:2\n bob:3\n"),
    ] {
        assert_eq!(with_user(text, "bob", "H"), with, "{text:?}");
        assert_eq!(without_user(text, "bob"), without, "{text:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn parsing_never_panics(text in "[a-z#:$/{}.ü0-9\r\n ]{0,120}") {
        let _ = Htpasswd::parse(&text);
    }

    #[test]
    fn any_hash_text_parses_or_not(text in r"(\$2y\$04|\$apr1|\$5|\$6\$rounds=1000|\{SHA\})?\$?[./A-Za-z0-9$ü]{0,100}") {
        if let Ok(hash) = Hash::parse(&text) {
            let _ = hash.verify(b"x");
        }
    }

    #[test]
    fn bcrypt_round_trip(password in "[^\0]{1,18}", salt in any::<[u8; 16]>()) {
        let text = hash_bcrypt(password.as_bytes(), 4, salt).unwrap();
        let hash = Hash::parse(&text).unwrap();
        prop_assert!(hash.verify(password.as_bytes()));
        let longer = password + "x";
        prop_assert!(!hash.verify(longer.as_bytes()));
    }

    #[test]
    fn adding_then_removing_a_new_user_gives_the_file_back(lines in prop::collection::vec("[a-y]{1,5}:[a-z]{0,5}|#[a-z ]{0,6}|", 0..6)) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        prop_assert_eq!(without_user(&with_user(&text, "zoe", "H"), "zoe"), text);
    }
}
