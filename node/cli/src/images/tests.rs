//! What is asked of the nodes, and what people read.

use clap::Parser;

use super::*;
use crate::arguments::{Arguments, Command};

fn parse(line: &str) -> ImageCommand {
    let Command::Image(command) = Arguments::try_parse_from(line.split(' ')).unwrap().command
    else {
        panic!("nothing about images: {line}")
    };
    command
}

fn listed(more: &str) -> String {
    let ImageCommand::List(wanted) = parse(&format!("shoal image list{more}")) else {
        panic!("no list")
    };
    filters(&wanted)
}

#[test]
fn every_filter_of_the_api_is_asked_for_by_its_name() {
    assert_eq!(listed(""), "&sort=name");
    let line = " --os linux --arch x86_64 --format qcow2 --kind disk --status pending --owner alice \
                --visibility public --type os_base --name zedge/ --query desk --starred";
    assert_eq!(
        listed(line),
        "&sort=name&q=desk&name=zedge%2F&kind=disk&type=os_base&os_type=linux\
         &architecture=x86_64&format=qcow2&status=pending&owner=alice&visibility=public\
         &starred=true"
    );
    let line = " --label team=blue --label env=prod --annotation wiki=x --sort created_at:desc";
    let wanted = "&sort=created_at%3Adesc&labels=env%3Dprod%2Cteam%3Dblue&annotations=wiki%3Dx";
    assert_eq!(listed(line), wanted);
    assert_eq!(listed(" --deleted"), "&sort=name&deleted=true");
}

#[test]
fn an_image_is_made_with_all_that_is_said_of_it() {
    let line = "shoal image create zedge/vm --display-name Desktop --type os_base --os linux \
                --os-version 22.04 --arch x86_64 --format vhdx --visibility public --min-cpu 2 \
                --min-memory 4096 --min-disk 40 --recommended-cpu 4 --recommended-memory 8192 \
                --recommended-disk 80 --label a=1,b=2 --label c=3 --annotation d=4";
    let ImageCommand::Create(new) = parse(line) else { panic!("nothing is made") };
    let made = described(&new);
    assert_eq!((made.name.as_str(), made.display_name.as_str()), ("zedge/vm", "Desktop"));
    assert_eq!((made.image_type.as_str(), made.os_type.as_str()), ("os_base", "linux"));
    assert_eq!((made.os_version.as_str(), made.architecture.as_str()), ("22.04", "x86_64"));
    assert_eq!((made.format.as_str(), made.visibility.as_str()), ("vhdx", "public"));
    assert_eq!((made.min_cpu_cores, made.min_memory_mb, made.min_disk_gb), (2, 4096, 40));
    assert_eq!((made.recommended_cpu_cores, made.recommended_memory_mb), (4, 8192));
    assert_eq!((made.recommended_disk_gb, made.labels.len()), (80, 3));
    assert_eq!(made.annotations["d"], "4");
    let ImageCommand::Create(new) = parse("shoal image create a") else { panic!("none") };
    assert_eq!(described(&new).visibility, "", "the project's own");
    assert_eq!(described(&new).organization_id, "", "the asker's");
    let line = "shoal image create acme/vm --organization acme --visibility organization";
    let ImageCommand::Create(new) = parse(line) else { panic!("none") };
    let made = described(&new);
    assert_eq!((&*made.organization_id, &*made.visibility), ("acme", "organization"));
}

#[test]
fn what_is_not_given_stays_and_labels_can_be_taken_away() {
    let edited = |more: &str| {
        let mut words: Vec<&str> = "shoal image edit zedge/vm".split(' ').collect();
        words.extend(more.split(' ').map(|word| if word == "''" { "" } else { word }));
        let Command::Image(ImageCommand::Edit(edit)) =
            Arguments::try_parse_from(words).unwrap().command
        else {
            panic!("nothing is edited")
        };
        changed(&edit)
    };
    let only = UpdateImage { format: Some("raw".to_owned()), ..UpdateImage::default() };
    assert_eq!(edited("--format raw"), only);
    let all = edited("--min-cpu 1 --min-memory 2 --min-disk 3 --recommended-cpu 4 --labels a=b");
    assert_eq!(
        (all.min_cpu_cores, all.min_memory_mb, all.min_disk_gb),
        (Some(1), Some(2), Some(3))
    );
    assert_eq!((all.recommended_cpu_cores, all.annotations), (Some(4), None));
    assert_eq!(all.labels.unwrap()["a"], "b");
    assert_eq!(edited("--label ''").labels, Some(BTreeMap::new()));
}

#[test]
fn people_read_what_is_said_and_nothing_of_what_is_not() {
    assert_eq!(machine(2, 0, 40), "2 processors, 40 GB of disk");
    assert_eq!(machine(0, 0, 0), "");
    let shown = serde_json::json!({
        "id": shoal_content::ImageId::from_uuid(Default::default()), "name": "a/b",
        "kind": "disk", "display_name": "", "description": "of the lab", "image_type": "",
        "os_type": "linux", "os_version": "", "architecture": "x86_64", "format": "qcow2",
        "visibility": "private", "total_size_bytes": 0, "status": "pending",
        "latest_version": null, "tags": [], "labels": { "team": "blue" },
        "owner": { "id": "u", "name": "u" }, "created_at": "", "updated_at": "",
        "min_cpu_cores": 0, "min_memory_mb": 4096, "min_disk_gb": 0, "versions": [],
    });
    let detail: ImageDetail = serde_json::from_value(shown).unwrap();
    let wanted = "about: of the lab\nsystem: linux x86_64\nneeds: 4096 MB of memory\n\
                  labels: team=blue\n";
    assert_eq!(profile(&detail), wanted);
}
