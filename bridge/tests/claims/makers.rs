//! Claims about EK certificates as the makers of TPMs issue them, and about what looks like one.
//!
//! The profiles are those of certificates that were published by, or read from TPMs of, the makers named. The certificates
//! here are made anew in their form.

use crate::maker::{Maker, tagged};
use keylime_mqtt_bridge::admission::Decision;
use std::fs;

const CA: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign";
const TPM: &str = "subjectAltName=critical,dirName:tpm";
/// As most: RSA
const USUAL: &str = "subjectAltName=critical,dirName:tpm\nbasicConstraints=critical,CA:FALSE\n\
                     keyUsage=critical,keyEncipherment\nextendedKeyUsage=2.23.133.8.1\n2.5.29.9=DER:30:00";

fn reason(decision: &Decision) -> &'static str {
    match decision {
        Decision::Admitted { .. } => "admitted",
        Decision::UnknownCa { reason, .. } | Decision::Malformed { reason } => reason,
        other => other.name(),
    }
}

/// One maker with one root, and what it says of many leaves
fn judged(leaves: &[(&str, &str)]) -> Vec<(String, &'static str)> {
    let maker = Maker::new();
    maker.root("root", "EC:P-256", CA);
    let ek = maker.rsa_ek();
    let judge = |leaf: &str| reason(&maker.decide(&ek, &maker.leaf("root", &ek, leaf, &[])));
    leaves.iter().map(|(what, leaf)| ((*what).to_owned(), judge(leaf))).collect()
}

#[test]
fn infineon_names_the_key_oaep_and_gives_its_ca_a_purpose() {
    let maker = Maker::new();
    maker.root("root", "RSA:3072", CA);
    let ca = format!("{CA}\nextendedKeyUsage=2.23.133.8.1\ncertificatePolicies=1.2.276.0.68.1.20.1");
    maker.intermediate("ca", "root", "RSA:2048", &ca, &[]);
    let ek = maker.rsa_ek();
    let plain = maker.leaf("ca", &ek, USUAL, &[]);
    assert_eq!(reason(&maker.decide(&ek, &plain)), "admitted");
    let rsa = [0x06, 0x09, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01];
    let oaep = [0x06, 0x09, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x07];
    let named = maker.rewritten(&plain, "ca", &rsa, &oaep);
    assert_eq!(reason(&maker.decide(&ek, &named)), "admitted");
}

#[test]
fn stm_and_intel_have_critical_policies_in_their_cas() {
    let maker = Maker::new();
    maker.root("root", "RSA:2048", CA);
    let policies = "certificatePolicies=critical,2.5.29.32.0";
    maker.intermediate("stm", "root", "RSA:2048", &format!("{CA}\n{policies}"), &[]);
    let intel = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n\
                 extendedKeyUsage=critical,2.23.133.8.1";
    maker.intermediate("intel", "root", "EC:P-256", &format!("{intel}\n{policies}"), &[]);
    assert!(maker.gate().unused_certificates().is_empty());
    let ek = maker.rsa_ek();
    for issuer in ["stm", "intel"] {
        for leaf in [USUAL, &format!("{USUAL}\n{policies}")] {
            assert_eq!(
                reason(&maker.decide(&ek, &maker.leaf(issuer, &ek, leaf, &[]))),
                "admitted",
                "{issuer}"
            );
        }
    }
}

#[test]
fn intel_writes_out_what_der_leaves_out_and_has_serials_of_twenty_bytes() {
    let maker = Maker::new();
    maker.root("root", "EC:P-256", CA);
    let ek = maker.rsa_ek();
    // an extension nobody knows, critical until it is rewritten to say that it is not
    let leaf = format!(
        "{TPM}\nkeyUsage=critical,keyEncipherment\nextendedKeyUsage=2.23.133.8.1\n\
         2.5.29.19=critical,DER:30:03:01:01:00\n1.2.3.4=critical,DER:05:00"
    );
    let serial = "0xFFEEDDCCBBAA99887766554433221100FFEEDDCC";
    let critical = maker.leaf("root", &ek, &leaf, &["-set_serial", serial]);
    let refused = reason(&maker.decide(&ek, &critical));
    assert_eq!(refused, "the EK certificate has a critical extension that is not known here");
    let (yes, no) = ([0x2A, 3, 4, 1, 1, 0xFF], [0x2A, 3, 4, 1, 1, 0]);
    let written_out = maker.rewritten(&critical, "root", &yes, &no);
    assert_eq!(reason(&maker.decide(&ek, &written_out)), "admitted");
}

#[test]
fn nuvoton_issues_ecc_keys_from_its_root_whose_name_is_a_set_in_no_order() {
    let maker = Maker::new();
    maker.key("root", "EC:P-256");
    maker.root("root", "EC:P-256", CA);
    let ek = maker.ecc_ek();
    let leaf = USUAL.replace("keyEncipherment", "keyAgreement");
    let ordered = maker.leaf("root", &ek, &leaf, &["-set_serial", "0x3F932F9D993C16BB"]);
    // the last two of /C=XX/O=Maker/CN=root as one set, whose order is then the wrong one
    let o = tagged(0x30, &[&[0x06, 3, 0x55, 4, 0x0A], text("Maker").as_slice()].concat());
    let cn = tagged(0x30, &[&[0x06, 3, 0x55, 4, 3], text("root").as_slice()].concat());
    let apart = [tagged(0x31, &o), tagged(0x31, &cn)].concat();
    // a set of two is two bytes shorter, which the country's name makes up for
    let country = tagged(0x31, &tagged(0x30, &[&[0x06, 3, 0x55, 4, 6], text("XX").as_slice()].concat()));
    let longer = tagged(0x31, &tagged(0x30, &[&[0x06, 3, 0x55, 4, 6], text("XXXX").as_slice()].concat()));
    let from = [country, apart].concat();
    let to = [longer, tagged(0x31, &[o, cn].concat())].concat();
    maker.rewrite_root("root", &from, &to);
    let unordered = maker.rewritten(&ordered, "root", &from, &to);
    assert_eq!(reason(&maker.decide(&ek, &unordered)), "admitted");
    let other = reason(&maker.decide(&ek, &ordered));
    assert_eq!(other, "no CA in ek_ca_dir has issued the EK certificate");
}

#[test]
fn amd_publishes_no_root_so_its_ca_is_trusted_where_the_operator_says_so() {
    let maker = Maker::new();
    maker.root("root", "RSA:2048", CA);
    maker.intermediate("amd", "root", "RSA:2048", CA, &[]);
    maker.remove("root");
    maker.root("another", "EC:P-256", CA);
    let ek = maker.rsa_ek();
    let leaf = maker.leaf("amd", &ek, &format!("{TPM}\nkeyUsage=critical,keyEncipherment"), &[]);
    assert_eq!(reason(&maker.decide(&ek, &leaf)), "no CA in ek_ca_dir has issued the EK certificate");
    let said = maker.gate().unused_certificates()[0].to_string();
    assert!(said.contains("amd.pem") && said.contains("its issuer's certificate"), "{said}");

    fs::create_dir(maker.path("store/anchors")).unwrap();
    fs::rename(maker.path("store/amd.pem"), maker.path("store/anchors/amd.pem")).unwrap();
    assert_eq!(reason(&maker.decide(&ek, &leaf)), "admitted");
    maker.remove("another");
    assert_eq!(reason(&maker.decide(&ek, &leaf)), "admitted", "an anchor is enough");
}

#[test]
fn issuers_may_sign_with_pss_and_on_p384_and_for_ever() {
    let maker = Maker::new();
    maker.root("rsa", "RSA:2048", CA);
    maker.root("p384", "EC:P-384", CA);
    let ek = maker.rsa_ek();
    let pss = ["-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"];
    maker.intermediate("pss", "rsa", "RSA:2048", CA, &pss);
    assert_eq!(reason(&maker.decide(&ek, &maker.leaf("pss", &ek, USUAL, &pss))), "admitted");
    assert_eq!(reason(&maker.decide(&ek, &maker.leaf("p384", &ek, USUAL, &["-sha384"]))), "admitted");
    let ages = maker.leaf("rsa", &ek, USUAL, &["-days", "20000"]);
    // a GeneralizedTime of 15 characters
    let time = ages.windows(2).position(|window| window == [0x18, 15]).unwrap();
    let for_ever = [&[0x18, 15], b"99991231235959Z".as_slice()].concat();
    let for_ever = maker.rewritten(&ages, "rsa", &ages[time..time + 17], &for_ever);
    assert_eq!(reason(&maker.decide(&ek, &for_ever)), "admitted");
}

#[test]
fn makers_leave_out_this_or_that() {
    let verdicts = judged(&[
        (
            "no basic constraints",
            &format!("{TPM}\nkeyUsage=critical,keyEncipherment\nextendedKeyUsage=2.23.133.8.1"),
        ),
        ("no purpose", &format!("{TPM}\nkeyUsage=critical,keyEncipherment")),
        ("no key usage", &format!("{TPM}\nextendedKeyUsage=2.23.133.8.1")),
        ("nothing but the TPM's name", TPM),
        ("nothing but the purpose", "extendedKeyUsage=2.23.133.8.1"),
        (
            "more usages and purposes",
            &format!(
                "{TPM}\nkeyUsage=critical,keyEncipherment,dataEncipherment,digitalSignature\n\
             extendedKeyUsage=2.23.133.8.1,clientAuth"
            ),
        ),
        ("agreement", &format!("{TPM}\nkeyUsage=keyAgreement")),
    ]);
    for (what, verdict) in verdicts {
        assert_eq!(verdict, "admitted", "{what}");
    }
}

#[test]
fn what_a_maker_issues_for_other_keys_is_not_taken_for_an_ek() {
    let nothing = "the certificate says neither that it is of an EK nor that it is of a TPM";
    let verdicts = judged(&[
        (nothing, "keyUsage=critical,keyEncipherment"),
        (nothing, "subjectAltName=DNS:tpm.example"),
        (nothing, &format!("{TPM}\nextendedKeyUsage=2.23.133.8.3")),
        (nothing, &format!("{TPM}\nextendedKeyUsage=serverAuth,clientAuth")),
        (
            "the certificate is of a key that signs, not of an EK",
            &format!("{TPM}\nkeyUsage=critical,digitalSignature"),
        ),
        (
            "the EK certificate is one of a CA",
            &format!("{USUAL}\nbasicConstraints=critical,CA:TRUE")
                .replace("basicConstraints=critical,CA:FALSE\n", ""),
        ),
        (
            "the EK certificate has a critical extension that is not known here",
            &format!("{USUAL}\n1.2.3.4=critical,DER:05:00"),
        ),
    ]);
    for (expected, verdict) in verdicts {
        assert_eq!(verdict, expected);
    }
}

#[test]
fn a_chain_that_is_forged_too_long_or_for_another_purpose_is_none() {
    let maker = Maker::new();
    maker.root("root", "EC:P-256", &CA.replace("CA:TRUE", "CA:TRUE,pathlen:1"));
    maker.intermediate("first", "root", "EC:P-256", CA, &[]);
    maker.intermediate("second", "first", "EC:P-256", CA, &[]);
    maker.intermediate("tls", "root", "EC:P-256", &format!("{CA}\nextendedKeyUsage=serverAuth"), &[]);
    maker.intermediate("leaf-ca", "root", "EC:P-256", "basicConstraints=critical,CA:FALSE", &[]);
    maker.intermediate(
        "usage",
        "root",
        "EC:P-256",
        "basicConstraints=critical,CA:TRUE\nkeyUsage=cRLSign",
        &[],
    );
    maker.intermediate("odd", "root", "EC:P-256", &format!("{CA}\n1.2.3.4=critical,DER:05:00"), &[]);
    maker.root("old", "RSA:2048", CA);
    maker.intermediate("sha1", "old", "EC:P-256", CA, &["-sha1"]);
    let ek = maker.rsa_ek();
    let unknown = "no CA in ek_ca_dir has issued the EK certificate";
    for issuer in ["second", "tls", "leaf-ca", "usage", "odd", "sha1"] {
        assert_eq!(reason(&maker.decide(&ek, &maker.leaf(issuer, &ek, USUAL, &[]))), unknown, "{issuer}");
    }
    assert_eq!(maker.gate().unused_certificates().len(), 6);
    assert_eq!(reason(&maker.decide(&ek, &maker.leaf("first", &ek, USUAL, &[]))), "admitted");

    let weak = maker.leaf("old", &ek, USUAL, &["-sha1"]);
    let reason_of_weak = reason(&maker.decide(&ek, &weak));
    assert!(reason_of_weak.contains("SHA-1"), "{reason_of_weak}");
    // another key under the first CA's name
    let forged = maker.leaf("first", &ek, USUAL, &[]);
    maker.key("first", "EC:P-256");
    let forged = maker.rewritten(&forged, "first", b"MODEL", b"OTHER");
    assert_eq!(
        reason(&maker.decide(&ek, &forged)),
        "the EK certificate is not signed by the CA in ek_ca_dir that it names"
    );
}

#[test]
fn a_certificate_out_of_its_time_is_refused() {
    let maker = Maker::new();
    maker.root("root", "EC:P-256", CA);
    maker.intermediate("past", "root", "EC:P-256", CA, &["-days", "-1"]);
    let ek = maker.rsa_ek();
    let leaf = maker.leaf("root", &ek, USUAL, &["-days", "-1"]);
    assert_eq!(reason(&maker.decide(&ek, &leaf)), "the EK certificate is not valid at this time");
    let leaf = maker.leaf("past", &ek, USUAL, &[]);
    assert_eq!(reason(&maker.decide(&ek, &leaf)), "the CA of the EK certificate is not valid at this time");
}

#[test]
fn bytes_after_a_certificate_and_an_extension_that_comes_twice_are_refused() {
    let maker = Maker::new();
    maker.root("root", "EC:P-256", CA);
    let ek = maker.rsa_ek();
    let leaf = maker.leaf("root", &ek, USUAL, &[]);
    let malformed = "the EK certificate is not X.509 (DER, one leaf)";
    let padded = [leaf.as_slice(), &[0xFF; 500]].concat();
    assert_eq!(reason(&maker.decide(&ek, &padded)), malformed);
    // the purpose renamed to a second alternative name
    let (purpose, name) = ([0x06, 3, 0x55, 0x1D, 0x25], [0x06, 3, 0x55, 0x1D, 0x11]);
    let twice = maker.rewritten(&leaf, "root", &purpose, &name);
    assert_eq!(reason(&maker.decide(&ek, &twice)), malformed);
}

/// As OpenSSL writes it in names
fn text(text: &str) -> Vec<u8> {
    tagged(if text.starts_with('X') { 0x13 } else { 0x0C }, text.as_bytes())
}
