use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

const CN_ENDS: u64 = 1_796_340_523;
const LATE_ENDS: u64 = 3_523_476_523;

/// Certificates that `openssl req -x509` made: a name for this file, then base64.
fn sample(name: &str) -> Vec<u8> {
    let line = include_str!("samples.txt").lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    STANDARD.decode(line.unwrap()).unwrap()
}

#[test]
fn the_name_is_the_common_name_or_the_one_alternative_name() {
    for (file, name) in [
        ("cn", Some("cert:alice")),
        ("san", Some("cert:spiffe://example.org/ci")),
        ("late", Some("cert:late")),
        // Two names are none: which of them would be meant?
        ("two", None),
        ("sans", None),
        ("none", None),
    ] {
        let certificate = ClientCertificate::read(&sample(file)).unwrap();
        assert_eq!(certificate.principal.as_ref().and_then(Principal::name), name, "{file}");
    }
}

#[test]
fn the_end_is_read_from_both_forms_of_time() {
    assert_eq!(not_after(&sample("cn")), Some(CN_ENDS));
    assert_eq!(not_after(&sample("late")), Some(LATE_ENDS));
    let certificate = ClientCertificate::read(&sample("cn")).unwrap();
    assert!(certificate.holds_at(CN_ENDS) && !certificate.holds_at(CN_ENDS + 1));
    for (tag, text, at) in [
        (UTC_TIME, "700101000000Z", Some(0)),
        (UTC_TIME, "000229000000Z", Some(951_782_400)),
        (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
        (UTC_TIME, "500101000000Z", Some(0)),
        (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
        (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
        (GENERALIZED_TIME, "20501301000000Z", None),
        (GENERALIZED_TIME, "205001010000Z", None),
        (UTC_TIME, "2001010000Z", None),
        (UTC_TIME, "200101000000+0000", None),
        (UTC_TIME, "20010100000\u{e9}", None),
        (OCTETS, "200101000000Z", None),
    ] {
        assert_eq!(seconds(tag, text), at, "{text}");
    }
}

#[test]
fn cut_and_damaged_certificates_are_no_certificates_and_never_panic() {
    let whole = sample("san");
    for n in 0..whole.len() {
        assert!(ClientCertificate::read(&whole[..n]).is_none(), "{n} bytes");
    }
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0x84, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            let _ = ClientCertificate::read(&damaged);
        }
    }
}

#[test]
fn equal_certificates_and_no_others_have_equal_fingerprints() {
    let read = |name| ClientCertificate::read(&sample(name)).unwrap().fingerprint;
    assert_eq!(read("cn"), read("cn"));
    assert_ne!(read("cn"), read("late"));
}
