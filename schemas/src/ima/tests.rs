use super::*;

const DEVICES: [(&str, &[u8]); 2] = [
    ("violations", include_bytes!("../../tests/data/violations.ima")),
    ("direct", include_bytes!("../../tests/data/direct.ima")),
];

/// PCR 10 after a piece of log, by an independent computation of its ima-ng entries
fn state_after(log: &str) -> ImaState {
    let mut pcr10 = [0u8; 32];
    for line in log.lines() {
        let fields: Vec<&str> = line.splitn(5, ' ').collect();
        let (algorithm, digest) = fields[3].split_once(':').unwrap();
        let algorithm = [algorithm.as_bytes(), b":\0"].concat();
        let digest = [algorithm, hex::decode(digest).unwrap()].concat();
        let name = [fields[4].as_bytes(), b"\0"].concat();
        let value: [u8; 32] = if fields[1].trim_matches('0').is_empty() {
            [0xFF; 32]
        } else {
            Sha256::digest([sized(&digest), sized(&name)].concat()).into()
        };
        pcr10 = Sha256::digest([pcr10, value].concat()).into();
    }
    ImaState { entries: log.lines().count() as u64, pcr10 }
}

fn sized(field: &[u8]) -> Vec<u8> {
    [&u32::try_from(field.len()).unwrap().to_le_bytes(), field].concat()
}

#[test]
fn the_recorded_logs_explain_pcr_10_from_any_entry_on() {
    for (device, log) in DEVICES {
        let text = std::str::from_utf8(log).unwrap();
        let at = state_after(text);
        let covered = log.len();
        assert_eq!(
            replay_ima(ImaState::BOOT, log, &at.pcr10),
            ImaReplay::Explained { at, covered },
            "{device}"
        );

        // from the middle, with entries after the quote
        let half: String = text.split_inclusive('\n').take(100).collect();
        let middle = state_after(&half);
        let differs = ImaReplay::Differs { at: middle };
        assert_eq!(replay_ima(ImaState::BOOT, half.as_bytes(), &at.pcr10), differs, "{device}");
        let rest = [&log[half.len()..], b"10 not looked at"].concat();
        let covered = log.len() - half.len();
        assert_eq!(replay_ima(middle, &rest, &at.pcr10), ImaReplay::Explained { at, covered }, "{device}");
        assert_eq!(replay_ima(at, &rest, &at.pcr10), ImaReplay::Explained { at, covered: 0 }, "{device}");
    }
}

#[test]
fn one_line_at_a_time_leads_where_the_whole_log_leads() {
    for (device, log) in DEVICES {
        let mut state = ImaState::BOOT;
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            let mut bare = state;
            extend_by(&mut bare, line.strip_suffix(b"\n").unwrap()).unwrap();
            extend_by(&mut state, line).unwrap();
            assert_eq!(state, bare);
        }
        assert_eq!(state, state_after(std::str::from_utf8(log).unwrap()), "{device}");
    }
}

#[test]
fn columns_that_pcr_10_does_not_cover_are_not_taken_as_they_come() {
    for (device, log) in DEVICES {
        for line in std::str::from_utf8(log).unwrap().split_inclusive('\n') {
            let is_violation = line.starts_with(&format!("10 {} ", "0".repeat(40)));
            assert_eq!(follows_from_pcr(line.as_bytes(), false), !is_violation, "{device}: {line}");
            // none of these changes what the line extends PCR 10 with
            let other = if line.starts_with("10 fe") { "ef" } else { "fe" };
            let changed_hash = [&line[..3], other, &line[5..]].concat();
            let shouted = line.to_uppercase().replace("IMA-NG", "ima-ng");
            for changed in
                [format!("\t{line}"), line.replacen("ima-ng", "ima-ngv2", 1), changed_hash, shouted]
            {
                assert!(!follows_from_pcr(changed.as_bytes(), false), "{device}: {changed}");
            }
        }
    }
}

#[test]
fn template_hashes_of_another_size_than_the_device_has_stated_do_not_follow() {
    let (_, log) = DEVICES[0];
    for line in std::str::from_utf8(log).unwrap().split_inclusive('\n').take(20) {
        let data = line.split_once(" ima-ng ").unwrap().1.trim_end();
        let hash = template::hash::<Sha256>(b"ima-ng", data.as_bytes()).unwrap();
        let wide = format!("10 {} ima-ng {data}\n", hex::encode(hash));
        for (line, sha256) in [(line, false), (wide.as_str(), true)] {
            assert_eq!(has_sha256_templates(line.as_bytes()), sha256);
            assert!(follows_from_pcr(line.as_bytes(), sha256), "{line}");
            assert!(!follows_from_pcr(line.as_bytes(), !sha256), "{line}");
        }
    }
}

#[test]
fn templates_are_hashed_as_keylime_hashes_them() {
    // template data by hand from keylime/ima/ast.py: SHA-1 of it stands in each line, as in a kernel's log
    let digest = "11".repeat(32);
    let long = "ab".repeat(200);
    let lines = [
        format!("10 - ima {} /bin/old", "22".repeat(20)),
        format!("10 - ima {} /bin/md5", "22".repeat(16)),
        format!("10 - ima-ng sha256:{digest} /bin/with blank"),
        format!("10 - ima-sig sha256:{digest} /bin/unsigned "),
        format!("10 - ima-sig sha256:{digest} /bin/signed 030204aabbccdd0003010203"),
        format!("10 - ima-buf sha256:{digest} dm_table_load {long}"),
        format!("10 - ima-modsig sha256:{digest} /bin/mod  sha256:{digest} 3082"),
        format!("10 - ima-sigv2 verity:sha256:{digest} /bin/verity 06"),
    ];
    let dng = sized(&[b"sha256:\0".as_slice(), &[0x11; 32]].concat());
    let old = |digest: &[u8], name: &[u8]| {
        let mut data = digest.to_vec();
        data.resize(20, 0);
        data.extend_from_slice(name);
        data.resize(20 + 256, 0);
        data
    };
    let signature = hex::decode("030204aabbccdd0003010203").unwrap();
    let verity = sized(&[b"verity:sha256:\0".as_slice(), &[0x11; 32]].concat());
    let expected = [
        old(&[0x22; 20], b"/bin/old"),
        old(&[0x22; 16], b"/bin/md5"),
        [dng.clone(), sized(b"/bin/with blank\0")].concat(),
        [dng.clone(), sized(b"/bin/unsigned\0"), sized(b"")].concat(),
        [dng.clone(), sized(b"/bin/signed\0"), sized(&signature)].concat(),
        [dng.clone(), sized(b"dm_table_load\0"), sized(&[0xab; 200])].concat(),
        [dng.clone(), sized(b"/bin/mod\0"), sized(b""), dng.clone(), sized(&[0x30, 0x82])].concat(),
        [verity, sized(b"/bin/verity\0"), sized(&[6])].concat(),
    ];
    for (line, data) in lines.iter().zip(expected) {
        let value: [u8; 32] = Sha256::digest(data).into();
        let quoted: [u8; 32] = Sha256::digest([[0; 32], value].concat()).into();
        let replay = replay_ima(ImaState::BOOT, line.as_bytes(), &quoted);
        assert!(matches!(replay, ImaReplay::Explained { .. }), "{line}: {replay:?}");
    }
}

#[test]
fn what_cannot_be_recomputed_stops_the_replay_and_is_never_guessed() {
    let cases: [(&[u8], Option<ImaProblem>); 7] = [
        (b"10 00ff evm-sig sha256:11 /x", Some(ImaProblem::UnknownTemplate)),
        (b"10 00ff ima-ng sha256:zz /x", Some(ImaProblem::Malformed)),
        (b"10 00ff ima-ng sha256:111 /x", Some(ImaProblem::Malformed)),
        (b"10 00ff ima-ng", Some(ImaProblem::Malformed)),
        (b"10 00ff ima-sig sha256:11 /x", Some(ImaProblem::Malformed)),
        (b"ten 00ff ima-ng sha256:11 /x", Some(ImaProblem::Malformed)),
        (b"", None),
    ];
    for (line, problem) in cases {
        let at = ImaState::BOOT;
        let expected =
            problem.map_or(ImaReplay::Differs { at }, |problem| ImaReplay::Stopped { at, problem });
        assert_eq!(replay_ima(at, line, &[9; 32]), expected, "{}", line.escape_ascii());
    }
}

#[test]
fn a_name_of_any_bytes_is_followed() {
    let line = b"10 - ima-ng sha256:1111 /\xff\xfe\x80 \xc3".to_vec();
    let mut state = ImaState::BOOT;
    extend_by(&mut state, &line).unwrap();
    let data = [sized(b"sha256:\0\x11\x11"), sized(b"/\xff\xfe\x80 \xc3\0")].concat();
    let value: [u8; 32] = Sha256::digest(data).into();
    assert_eq!(state.pcr10, <[u8; 32]>::from(Sha256::digest([[0; 32], value].concat())));
}
