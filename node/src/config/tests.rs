//! The settings: the example, the nearest names, who wins over whom.

use super::*;

fn load(text: &str) -> Result<Config, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(Some(&path), [], &[])
}

#[test]
fn the_example_loads_and_names_every_setting() {
    let text = include_str!("../../../deploy/node.toml");
    load(text).unwrap();
    for (section, keys) in SETTINGS {
        let (_, rest) = text.split_once(&format!("[{section}]\n")).expect(section);
        let rest = rest.split("\n[").next().unwrap_or_default();
        for key in *keys {
            let line = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} ="));
            assert!(rest.lines().any(line), "[{section}] {key} is not in the example");
        }
    }
}

#[test]
fn a_misspelled_key_is_refused_with_its_line_and_the_nearest_one() {
    let error = load("[node]\nname = \"a\"\n\n[http]\nlistn = \"127.0.0.1:1\"\n").unwrap_err();
    let message = error.to_string();
    assert!(message.contains("line 5") && message.contains("'listen'"), "{message}");
}

#[test]
fn flags_win_over_the_environment_which_wins_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    std::fs::write(&path, "[node]\nname = \"file\"\nzone = \"eu\"\n").unwrap();
    let environment = [
        ("SHOAL_NODE_NODE_NAME".to_owned(), "environment".to_owned()),
        ("SHOAL_NODE_NODE_ZONE".to_owned(), "us".to_owned()),
    ];
    let flags = [("node.name".to_owned(), "flag".to_owned())];
    let config = Config::load(Some(&path), environment, &flags).unwrap();
    assert_eq!((config.node.name.as_str(), config.node.zone.to_string().as_str()), ("flag", "us"));
}

#[test]
fn the_list_of_settings_is_the_types_own() {
    let table = toml::Table::try_from(Config::default()).unwrap();
    for (section, value) in table.iter().filter(|(section, _)| *section != "upstreams") {
        let keys = SETTINGS.iter().find(|(name, _)| name == section).expect("a section").1;
        for key in value.as_table().unwrap().keys() {
            assert!(keys.contains(&key.as_str()), "[{section}] {key} is not listed");
        }
    }
    for (section, keys) in SETTINGS {
        for key in *keys {
            let text = format!("[{section}]\n{key} = {{}}\n");
            let message = load(&text).unwrap_err().to_string();
            assert!(!message.contains("unknown"), "[{section}] {key} is no setting: {message}");
        }
    }
}

#[test]
fn upstreams_have_names_that_images_can_have_and_one_place_each() {
    let example: Config = load(include_str!("../../../deploy/node.toml")).unwrap();
    assert!(example.upstreams.0.is_empty(), "nothing is fetched unless somebody wants it");
    let text = include_str!("../../../deploy/node.toml");
    let (_, section) = text.split_once("# [upstreams.\"docker.io\"]\n").unwrap();
    for key in UPSTREAM_SETTINGS {
        assert!(section.contains(&format!("# {key} =")), "{key} is not in the example");
    }
    let said = |text: &str| load(text).map(drop).map_err(|error| error.to_string());
    let hub = "[upstreams.\"docker.io\"]\nurl = \"https://registry-1.docker.io\"\n";
    said(&format!("{hub}aliases = [\"index.docker.io\"]\n")).unwrap();
    for (unfit, word) in [
        ("[upstreams.\"docker.io\"]\n".to_owned(), "url"),
        ("[upstreams.\"a:5000\"]\nurl = \"https://a:5000\"\n".to_owned(), "alias"),
        (format!("{hub}username = \"u\"\n"), "password_file"),
        (format!("{hub}allow = [\"a+b\"]\n"), "allow"),
        (format!("{hub}visibility = \"open\"\n"), "visibility"),
        (format!("{hub}aliases = [\"Docker.io\"]\n"), "twice"),
        (format!("{hub}tag_second = 1\n"), "'tag_seconds'"),
        (hub.replace("https://", "https://u:p@"), "url"),
        (format!("{hub}proxy = \"socks5://p:1080\"\n"), "proxy"),
        (format!("{hub}proxy = \"http://u:p@p:3128\"\n"), "proxy"),
        (format!("{hub}proxy_hosts = [\"*\"]\n"), "needs one"),
        (format!("{hub}proxy = \"http://p\"\nproxy_username = \"u\"\n"), "proxy_password_file"),
        (format!("{hub}proxy = \"http://p\"\nproxy_hosts = [\"a:1\"]\n"), "proxy_hosts"),
        (format!("{hub}silence_seconds = 0\n"), "silence_seconds"),
    ] {
        let message = said(&unfit).unwrap_err();
        assert!(message.contains(word), "{unfit}: {message}");
    }
}

#[test]
fn the_domain_of_passkeys_is_that_of_the_url() {
    let url = "[http]\nurl = \"https://shoal.example.org:5000\"\n[passkeys]\n";
    for domain in ["", "shoal.example.org", "example.org"] {
        load(&format!("{url}domain = \"{domain}\"\n")).unwrap();
    }
    for domain in ["example.com", "oal.example.org", "Example.org", "https://example.org"] {
        assert!(load(&format!("{url}domain = \"{domain}\"\n")).is_err(), "{domain}");
    }
    assert!(load("[passkeys]\ndomain = \"example.org\"\n").is_err(), "an address has none");
    assert!(load("[passkeys]\nchallenge_seconds = 0\n").is_err());
}

#[test]
fn github_wants_a_secret_and_has_its_api_where_it_is_usual() {
    let github = "[oidc]\nprotocol = \"github\"\nclient_id = \"shoal\"\n";
    let secret = "client_secret = \"s\"\nrequired_groups = [\"acme\"]\n";
    for (issuer, api) in [
        ("https://github.com", "https://api.github.com"),
        ("https://github.com/", "https://api.github.com"),
        ("https://git.example", "https://git.example/api/v3"),
    ] {
        let text = format!("{github}{secret}issuer = \"{issuer}\"\n");
        assert_eq!(load(&text).unwrap().oidc.api_url(), api);
    }
    let issuer = "issuer = \"https://github.com\"\n";
    assert!(load(&format!("{github}{issuer}")).is_err(), "no secret");
    let everybody = "client_secret = \"s\"\n";
    assert!(load(&format!("{github}{everybody}{issuer}")).is_err(), "anybody in the world");
    load(&format!("{github}{everybody}{issuer}create_accounts = false\n")).unwrap();
    let plain = "api_url = \"http://api.example\"\n";
    assert!(load(&format!("{github}{secret}{issuer}{plain}")).is_err(), "in the clear");
}

#[test]
fn people_make_their_own_accounts_only_where_nobody_else_knows_them() {
    assert_eq!(load("").unwrap().accounts.registration, Registration::Closed);
    let open = "[accounts]\nregistration = \"open\"\n";
    let refused = load(open);
    assert!(matches!(refused, Err(Error::Value { key: "orders", .. })), "who orders is not said");
    let open = &format!("{open}orders = \"administrators\"\n");
    assert_eq!(load(open).unwrap().accounts.registration, Registration::Open);
    let directory = "[ldap]\nurl = \"ldaps://l\"\nuser_base = \"ou=p,dc=x\"\n";
    let issuer = "[oidc]\nissuer = \"https://i.example\"\nclient_id = \"shoal\"\n";
    for elsewhere in [directory, issuer] {
        load(elsewhere).unwrap();
        let refused = load(&format!("{elsewhere}{open}"));
        assert!(matches!(refused, Err(Error::Value { key: "registration", .. })), "{elsewhere}");
    }
    assert!(load("[lockout]\naddress_registrations = 0\n").is_err());
}

#[test]
fn an_old_master_key_stands_beside_a_new_one() {
    let old = "[encryption]\nprevious_master_key_files = [\"/etc/shoal/old\"]\n";
    assert!(matches!(load(old), Err(Error::Value { key: "previous_master_key_files", .. })));
    let old_kms = "[encryption]\nprevious_kms_command = [\"/usr/lib/shoal/old\"]\n";
    assert!(matches!(load(old_kms), Err(Error::Value { key: "previous_kms_command", .. })));
    let both = load(&format!("{old}master_key_file = \"/etc/shoal/new\"\n")).unwrap();
    assert!(both.encryption.seal);
    assert_eq!(Config::default().encryption.master_key_file, None, "off unless somebody wants it");
}

#[test]
fn either_a_file_or_a_program_wraps_and_the_other_one_opens() {
    let kms = "kms_command = [\"/usr/lib/shoal/kms\", \"--key\", \"shoal\"]\n";
    let file = "master_key_file = \"/etc/shoal/master-key\"\n";
    let said = |lines: String| {
        load(&format!("[encryption]\n{lines}")).map_err(|error| match error {
            Error::Value { key, .. } => key,
            error => panic!("{error}"),
        })
    };
    let from_file = format!("{kms}previous_master_key_files = [\"/etc/shoal/master-key\"]\n");
    assert_eq!(said(from_file).unwrap().encryption.kms_command.len(), 3);
    said(format!("{file}previous_{kms}")).unwrap();
    said(format!("{kms}previous_{kms}")).unwrap();
    for (lines, key) in [
        (format!("{file}{kms}"), "kms_command"),
        (kms.replace("/usr/lib/shoal/", ""), "kms_command"),
        (format!("{file}previous_kms_command = [\"kms\"]\n"), "previous_kms_command"),
        (format!("{kms}kms_timeout_seconds = 0\n"), "kms_timeout_seconds"),
        (format!("{kms}kms_timeout_seconds = 61\n"), "kms_timeout_seconds"),
    ] {
        assert_eq!(said(lines.clone()).unwrap_err(), key, "{lines}");
    }
}

#[test]
fn keys_are_not_destroyed_while_a_push_may_be_under_way() {
    let after = |seconds: u64| load(&format!("[encryption]\nshred_after_seconds = {seconds}\n"));
    assert!(matches!(after(599), Err(Error::Value { key: "shred_after_seconds", .. })));
    assert_eq!(after(600).unwrap().encryption.shred_after_seconds, 600);
}

#[test]
fn plain_http_is_for_loopback() {
    assert!(load("[http]\nplain_listen = \"127.0.0.1:80\"\n").is_ok());
    assert!(matches!(load("[http]\nplain_listen = \"0.0.0.0:80\"\n"), Err(Error::Value { .. })));
}

#[test]
fn acme_needs_consent_and_no_second_certificate() {
    let acme = "[acme]\ndomains = [\"shoal.example\", \"10.0.0.1\"]\n";
    let agreed = format!("{acme}terms_of_service_agreed = true\n");
    assert!(load(&agreed).is_ok());
    let files = "[http]\ncertificate_file = \"a\"\nkey_file = \"b\"\n";
    for refused in [
        acme.to_owned(),
        format!("{files}{agreed}"),
        format!("{agreed}contact = [\"operator\"]\n"),
        agreed.replace("shoal.example", "*.example"),
    ] {
        assert!(matches!(load(&refused), Err(Error::Value { section: "acme", .. })), "{refused}");
    }
}

#[test]
fn a_program_stands_for_an_earlier_one_and_for_no_other() {
    let stands_for = |text: &str| {
        let variable = ("SHOAL_NODE_STANDS_FOR".to_owned(), text.to_owned());
        Config::load(Some(Path::new("/dev/null")), [variable], &[])
    };
    let known = |config: Config| config.program.command_version();
    assert_eq!(known(stands_for("1").unwrap()), 1);
    assert_eq!(known(load("").unwrap()), shoal_metadata::COMMAND_VERSION);
    for none in ["0", "255", "", "newest"] {
        let error = stands_for(none).unwrap_err().to_string();
        assert!(error.contains("SHOAL_NODE_STANDS_FOR"), "{error}");
    }
}

#[test]
fn a_directory_is_not_asked_in_the_clear() {
    let ldap = |lines: &str| {
        let base = if lines.contains("user_base") { "" } else { "user_base = \"ou=people\"\n" };
        load(&format!("[ldap]\n{base}{lines}")).map(drop).map_err(|error| error.to_string())
    };
    for fit in [
        "url = \"ldaps://ldap.example\"",
        "url = \"ldap://ldap.example\"\nstarttls = true",
        "url = \"ldap://127.0.0.1:389\"",
        "url = \"ldaps://l\"\nbind_dn = \"cn=s\"\nbind_password = \"p\"",
    ] {
        ldap(fit).unwrap();
    }
    for (unfit, key) in [
        ("url = \"ldap://ldap.example\"", "starttls"),
        ("url = \"ldaps://ldap.example\"\nstarttls = true", "starttls"),
        ("url = \"https://ldap.example\"", "url"),
        ("url = \"ldaps://l\"\nuser_filter = \"(uid=alice)\"", "user_filter"),
        ("url = \"ldaps://l\"\nbind_dn = \"cn=s\"", "bind_password"),
        ("url = \"ldaps://l\"\nuser_base = \"\"", "user_base"),
        ("url = \"ldaps://l\"\ngroups = [\"x\"]", "groups"),
        ("url = \"ldaps://l\"\ngroup_base = \"ou=g\"\ngroup_filter = \"(cn=x)\"", "group_filter"),
    ] {
        let said = ldap(unfit).unwrap_err();
        assert!(said.contains(key), "{unfit}: {said}");
    }
}
