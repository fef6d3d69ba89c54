//! The grammar of the command line.

use clap::CommandFactory;

use shoal_content::{Priority, TagName};
use shoal_formats::{Format, Target};

use super::*;

fn parse(line: &str) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(line.split(' '))
}

#[test]
fn the_grammar_is_sound() {
    Arguments::command().debug_assert();
    assert!(Arguments::command().render_long_help().to_string().contains("Exit codes"));
}

#[test]
fn a_deployment_needs_to_know_its_hosts() {
    assert!(parse("shoal deploy a/b:c").is_err());
    assert!(parse("shoal deploy a/b:c --all --host x").is_err());
    assert!(parse("shoal deploy a/b:c --all --watch --detach").is_err());
    assert!(parse("shoal deploy a/b:c --selector room").is_err());
    assert!(parse("shoal deploy a/b:c --selector ,").is_err());
    let both = parse("shoal --json deploy a/b:c --host x --host y --selector room=1").unwrap();
    assert!(both.json);
    let Command::Deploy(deploy) = both.command else { panic!("not a deployment") };
    assert_eq!(deploy.host, ["x", "y"]);
    assert_eq!(deploy.selector.unwrap().0, "room=1");
}

#[test]
fn a_deployment_has_a_plan_and_is_held_up_or_tried_again() {
    let line = "shoal deploy a:b --all --priority urgent --parallel 2 --deadline 90m";
    let Command::Deploy(deploy) = parse(line).unwrap().command else { panic!("not a deployment") };
    assert_eq!((deploy.priority, deploy.parallel), (Priority::Urgent, Some(2)));
    assert_eq!(deploy.deadline.unwrap().0.seconds, Some(5400));
    let at = parse("shoal deployments retry a:b --deadline 2026-01-31T18:00:00Z --watch");
    assert!(at.is_ok());
    for bad in ["--parallel 0", "--priority top", "--deadline soon"] {
        assert!(parse(&format!("shoal deploy a:b --all {bad}")).is_err(), "{bad}");
    }
    let listed = parse("shoal deployments").unwrap().command;
    assert!(matches!(listed, Command::Deployments { command: None }));
    assert!(parse("shoal deployments pause").is_err());
    assert!(parse("shoal warm-up create base a:b").is_err(), "on which hosts?");
    let line = "shoal warm-up create base a:b --selector room=1";
    let Command::WarmUp(WarmUpCommand::Create(made)) = parse(line).unwrap().command else {
        panic!("not a policy")
    };
    assert_eq!(made.priority, Priority::Low);
}

#[test]
fn vulnerabilities_are_asked_for_by_severity() {
    let line = "shoal image vulnerabilities a/b:1 --severity critical,high --fail-on high";
    let Command::Image(ImageCommand::Vulnerabilities { severity, fail_on, .. }) =
        parse(line).unwrap().command
    else {
        panic!("none are asked for")
    };
    assert_eq!(
        (severity, fail_on),
        (vec![Severity::Critical, Severity::High], Some(Severity::High))
    );
    assert!(parse("shoal image vulnerabilities a/b --severity severe").is_err());
    assert!(parse("shoal image scan").is_err());
}

#[test]
fn upstreams_are_listed_or_one_is_shown() {
    let listed = parse("shoal upstreams").unwrap().command;
    assert!(matches!(listed, Command::Upstreams { command: None }));
    let shown = parse("shoal upstreams status docker.io").unwrap().command;
    assert!(matches!(shown, Command::Upstreams { command: Some(UpstreamCommand::Status { .. }) }));
    assert!(parse("shoal upstreams status").is_err());
}

#[test]
fn an_upload_takes_a_version_of_its_own() {
    let line = "shoal image upload f zedge/a:v1 --version 1.0.0 --format raw --json";
    let Command::Image(ImageCommand::Upload(upload)) = parse(line).unwrap().command else {
        panic!("not an upload")
    };
    assert_eq!(upload.number.as_deref(), Some("1.0.0"));
    assert_eq!(upload.format, Some(Format::Raw));
    assert!(parse("shoal image upload f a:v --parallel 0").is_err());
    assert!(parse("shoal image upload f A:v").is_err());
}

#[test]
fn a_new_version_gets_tags_words_and_how_it_was_built() {
    let line = "shoal image upload f zedge/a:v1 --tag stable --tag beta --changelog faster \
                --build-info commit=4f2c --build-info {\"n\":1}";
    let Command::Image(ImageCommand::Upload(upload)) = parse(line).unwrap().command else {
        panic!("not an upload")
    };
    let tags: Vec<&str> = upload.new.tags.iter().map(TagName::as_str).collect();
    assert_eq!((tags, upload.new.changelog.as_str()), (vec!["stable", "beta"], "faster"));
    let built = serde_json::to_value(BuildInfo::joined(&upload.new.build_info)).unwrap();
    assert_eq!(built, serde_json::json!({ "commit": "4f2c", "n": 1 }));
    assert_eq!(BuildInfo::joined(&[]), None);
    for bad in ["--tag .x", "--build-info commit", "--build-info =x", "--build-info {"] {
        assert!(parse(&format!("shoal image upload f a:v {bad}")).is_err(), "{bad}");
    }
    let line = "shoal image import https://h/f a:v --version 1 --tag stable --build-info by=ci";
    assert!(parse(line).is_ok());
    assert!(parse("shoal image promote a v1 --as 2 --tag stable --changelog x").is_ok());
    assert!(parse("shoal image build-info a v1 by=ci").is_ok());
    assert!(parse("shoal image build-info a v1").is_err());
}

#[test]
fn an_upload_that_was_begun_is_looked_at_and_ended_by_its_id() {
    let id = format!("upload-{}", "0".repeat(32));
    let line = format!("shoal image upload-abort zedge/a {id} --yes");
    let Command::Image(ImageCommand::UploadAbort { name, upload, yes }) =
        parse(&line).unwrap().command
    else {
        panic!("nothing is ended")
    };
    assert_eq!((name.as_str(), upload.to_string(), yes), ("zedge/a", id.clone(), true));
    assert!(parse(&format!("shoal image upload-status zedge/a {id}")).is_ok());
    assert!(parse("shoal image upload-status zedge/a 7").is_err());
}

#[test]
fn lists_are_narrowed_and_have_pages() {
    let line = "shoal image list --kind disk --os linux --arch aarch64 --owner bob --page 2 \
                --page-size 500 --label a=b,c=d --label e=f --annotation g=h --visibility private";
    assert!(parse(line).is_ok());
    for bad in ["--kind floppy", "--page 0", "--page-size 501", "--status gone", "--label a"] {
        assert!(parse(&format!("shoal image list {bad}")).is_err(), "{bad}");
    }
    assert!(parse("shoal image create Zedge").is_err());
    assert!(parse("shoal image create a --format qed").is_err());
    assert!(parse("shoal image edit a --min-cpu none").is_err());
    assert!(parse("shoal image versions a --status deprecated").is_ok());
    assert!(parse("shoal image resolve a:v1").is_ok());
    assert!(parse("shoal instance list --version 1").is_err(), "of which image?");
    assert!(parse("shoal instance list --image a --version 1 --by bob").is_ok());
}

#[test]
fn a_backup_is_made_or_verified() {
    let Command::Backup(made) = parse("shoal backup /srv/b --objects").unwrap().command else {
        panic!("not a backup")
    };
    assert!(made.objects && made.command.is_none());
    assert_eq!(made.path, Some("/srv/b".into()));
    let line = "shoal backup verify f --objects d --read";
    let Command::Backup(verified) = parse(line).unwrap().command else { panic!("not a backup") };
    assert!(matches!(verified.command, Some(BackupCommand::Verify { read: true, .. })));
    assert!(parse("shoal backup").is_err());
    assert!(parse("shoal backup verify f --read").is_err());
}

#[test]
fn disks_go_in_and_out_in_every_format() {
    for format in Format::ALL {
        assert!(parse(&format!("shoal image upload f a:v --format {format}")).is_ok());
    }
    for target in Target::ALL {
        let line = format!("shoal image download a:v --format {target}");
        let Command::Image(ImageCommand::Download(asked)) = parse(&line).unwrap().command else {
            panic!("not a download")
        };
        assert_eq!(asked.format, target);
    }
    assert!(parse("shoal image upload f a:v --format vhd-fixed").is_err());
    assert!(parse("shoal image download a:v --format qed").is_err());
}

#[test]
fn only_one_kind_of_trust_at_a_time() {
    assert!(parse("shoal login https://a --ca f --insecure-skip-verify").is_err());
    assert!(parse("shoal login https://a --fingerprint 00 --password-stdin").is_ok());
}

#[test]
fn a_rule_keeps_in_one_way_and_counts_whole_days() {
    let line = "shoal policy keep shop --tags v* --pulled-within 2w";
    let Command::Policy(PolicyCommand::Keep(rule)) = parse(line).unwrap().command else {
        panic!("not a rule")
    };
    assert_eq!((rule.repositories.as_str(), rule.tags.as_str()), ("**", "v*"));
    assert_eq!(rule.pulled_within, Some(Days(14)));
    assert!(parse("shoal policy keep shop").is_err());
    assert!(parse("shoal policy keep shop --newest 1 --always").is_err());
    assert!(parse("shoal policy keep shop --pushed-within 36h").is_err());
    assert!(parse("shoal policy keep shop/app --newest 1").is_err());
    assert!(parse("shoal policy immutable shop").is_err());
    assert!(parse("shoal policy remove shop").is_err());
    assert!(parse("shoal policy untagged shop never").is_ok());
}

#[test]
fn a_limit_has_a_unit_or_is_none() {
    let line = "shoal quota set project:shop --bytes 10GiB --images 5 --image-bytes none";
    let Command::Quota(QuotaCommand::Set { bytes, images, image_bytes, .. }) =
        parse(line).unwrap().command
    else {
        panic!("not a quota")
    };
    assert_eq!(bytes, Some(Limit(Some(10 << 30))));
    assert_eq!((images, image_bytes), (Some(Limit(Some(5))), Some(Limit(None))));
    assert!(parse("shoal quota set project:shop").is_err());
    for bad in ["10XB", "GiB", "-1", "1.5GiB", "99999999999999TiB"] {
        assert!(parse(&format!("shoal quota set cluster --bytes={bad}")).is_err(), "{bad}");
    }
}

#[test]
fn a_token_lives_an_hour_unless_told_otherwise() {
    let Command::Token(TokenCommand::Create { ttl, uses, role }) =
        parse("shoal token create --role agent").unwrap().command
    else {
        panic!("not a token")
    };
    assert_eq!((ttl, uses, role), (Duration::from_secs(3600), None, Role::Agent));
}

#[test]
fn versions_roll_back_and_instances_name_what_they_run() {
    let line = "shoal image rollback zedge/vm 1.0.0";
    let Command::Image(ImageCommand::Rollback { tag, version, .. }) = parse(line).unwrap().command
    else {
        panic!("not a rollback")
    };
    assert_eq!((tag.as_str(), version.as_str()), ("latest", "1.0.0"));
    assert!(parse("shoal instance register vm-1 zedge/vm:stable").is_ok());
    assert!(parse("shoal instance register vm/1 zedge/vm:stable").is_err());
    assert!(parse("shoal image list --label env=prod,team=a --sort created_at:desc").is_ok());
    assert!(parse("shoal image list --label env").is_err());
    assert!(parse("shoal image import https://h/f zedge/vm").is_err(), "without a number");
    assert!(parse("shoal image import https://h/f zedge/vm --version 1 --checksum md5:0").is_err());
}
