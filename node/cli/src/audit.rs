//! The audit trail: list, export, verify.

use std::io::Write as _;

use shoal_api::{AuditArchive, AuditEntry, AuditPage, AuditVerification};

use crate::arguments::{AuditCommand, AuditFormat, AuditSearch};
use crate::client::{Client, escaped};
use crate::error::Error;
use crate::screen::{Screen, bytes, table, write_out};

const PATH: &str = "api/v1/audit";
/// Entries of one request.
const PAGE: usize = 1000;

pub async fn audit(command: &AuditCommand, client: &Client, screen: Screen) -> Result<(), Error> {
    match command {
        AuditCommand::List { search, limit } => {
            let mut entries = Vec::new();
            let mut before = None;
            while entries.len() < *limit {
                let page = page(client, search, before, (*limit - entries.len()).min(PAGE)).await?;
                entries.extend(page.entries);
                before = page.before;
                if before.is_none() {
                    break;
                }
            }
            screen.show(&entries, || entry_table(&entries))
        }
        AuditCommand::Export { search, format, archives } => {
            export(client, search, *format, *archives).await
        }
        AuditCommand::Archives => {
            let archives: Vec<AuditArchive> = client.list(&format!("{PATH}/archives")).await?;
            screen.show(&archives, || {
                let mut rows = table(&["FIRST", "LAST", "FROM", "UNTIL", "SIZE", "OBJECT"]);
                for one in &archives {
                    let (first, last) = (one.first.to_string(), one.last.to_string());
                    let size = bytes(one.bytes);
                    rows.add_row([&first, &last, &one.from, &one.until, &size, &one.object]);
                }
                rows.to_string()
            })
        }
        AuditCommand::Verify { head } => {
            let found: AuditVerification = client.get(format!("{PATH}/verify")).await?;
            screen.show(&found, || {
                let AuditVerification { entries, archives, last, head, flaws } = &found;
                let sound = if flaws.is_empty() { "sound" } else { "NOT SOUND" };
                let flaws: String = flaws.iter().map(|flaw| format!("\n  {flaw}")).collect();
                format!("{entries} entries and {archives} archives, {sound}; entry {last} is {head}{flaws}")
            })?;
            if !found.flaws.is_empty() {
                return Err(Error::Answer(
                    "the audit trail was tampered with, or is damaged".into(),
                ));
            }
            match head {
                Some(noted) => check_head(client, noted, &found).await,
                None => Ok(()),
            }
        }
    }
}

/// Whether an entry that was noted before, as NUMBER:HASH, is still there.
async fn check_head(client: &Client, noted: &str, now: &AuditVerification) -> Result<(), Error> {
    let usage = || Error::Usage("--head is NUMBER:HASH".into());
    let (number, hash) = noted.split_once(':').ok_or_else(usage)?;
    let number: u64 = number.parse().map_err(|_| usage())?;
    let gone = || Error::Answer(format!("entry {number} is not what it was"));
    if number > now.last {
        return Err(gone());
    }
    let path = format!("{PATH}?before={}&limit=1", number + 1);
    let page: AuditPage = client.get(path).await?;
    let mut found = page.entries.into_iter().find(|entry| entry.number == number);
    if found.is_none() {
        let archives: Vec<AuditArchive> = client.list(&format!("{PATH}/archives")).await?;
        if let Some(one) = archives.iter().find(|one| (one.first..=one.last).contains(&number)) {
            let entries: Vec<AuditEntry> =
                client.get(format!("{PATH}/archives/{}", one.first)).await?;
            found = entries.into_iter().find(|entry| entry.number == number);
        }
    }
    if found.is_some_and(|entry| entry.hash == hash) { Ok(()) } else { Err(gone()) }
}

async fn page(
    client: &Client,
    search: &AuditSearch,
    before: Option<u64>,
    limit: usize,
) -> Result<AuditPage, Error> {
    let mut path = format!("{PATH}?limit={limit}");
    let result = search.refused.then(|| "refused".to_owned());
    let before = before.map(|before| before.to_string());
    for (name, value) in [
        ("who", &search.who),
        ("action", &search.action),
        ("target", &search.target),
        ("result", &result),
        ("since", &search.since),
        ("until", &search.until),
        ("before", &before),
    ] {
        if let Some(value) = value {
            path = format!("{path}&{name}={}", escaped(value));
        }
    }
    client.get(path).await
}

fn entry_table(entries: &[AuditEntry]) -> String {
    let mut rows = table(&["NUMBER", "AT", "WHO", "FROM", "ACTION", "TARGET", "RESULT"]);
    for entry in entries {
        let times = if entry.count == 1 { String::new() } else { format!(" x{}", entry.count) };
        let result = match &entry.reason {
            Some(reason) => format!("{}: {reason}", entry.result),
            None => format!("{}{times}", entry.result),
        };
        let number = entry.number.to_string();
        rows.add_row([
            &number,
            &entry.at,
            &entry.who,
            &entry.from,
            &entry.action,
            &entry.target,
            &result,
        ]);
    }
    rows.to_string()
}

/// Page by page, as it comes.
async fn export(
    client: &Client,
    search: &AuditSearch,
    format: AuditFormat,
    archives: bool,
) -> Result<(), Error> {
    if format == AuditFormat::Csv {
        write_out(CSV_HEAD.as_bytes())?;
    }
    let mut before = None;
    loop {
        let page = page(client, search, before, PAGE).await?;
        write_entries(&page.entries, format)?;
        before = page.before;
        if before.is_none() {
            break;
        }
    }
    if archives {
        let mut archives: Vec<AuditArchive> = client.list(&format!("{PATH}/archives")).await?;
        archives.reverse();
        for one in archives {
            let path = format!("{PATH}/archives/{}", one.first);
            let mut entries: Vec<AuditEntry> = client.get(path).await?;
            entries.reverse();
            write_entries(&entries, format)?;
        }
    }
    Ok(())
}

const CSV_HEAD: &str =
    "number,at,who,from,action,target,result,reason,count,request_id,node,hash\r\n";

fn write_entries(entries: &[AuditEntry], format: AuditFormat) -> Result<(), Error> {
    let mut text = Vec::new();
    for entry in entries {
        match format {
            AuditFormat::Csv => text.extend_from_slice(csv_line(entry).as_bytes()),
            AuditFormat::Json => {
                let line =
                    serde_json::to_string(entry).map_err(|e| Error::Answer(e.to_string()))?;
                // Writing into memory does not fail.
                let _ = writeln!(text, "{line}");
            }
        }
    }
    write_out(&text)
}

/// RFC 4180; a field that a spreadsheet would take for a formula is made a text.
fn csv_line(entry: &AuditEntry) -> String {
    let field = |text: &str| {
        let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
        let text = if formula { format!("'{text}") } else { text.to_owned() };
        match text.contains(['"', ',', '\n', '\r']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text,
        }
    };
    let reason = entry.reason.as_deref().unwrap_or_default();
    let fields = [
        entry.number.to_string(),
        field(&entry.at),
        field(&entry.who),
        field(&entry.from),
        field(&entry.action),
        field(&entry.target),
        field(&entry.result),
        field(reason),
        entry.count.to_string(),
        field(&entry.request_id),
        entry.node.to_string(),
        field(&entry.hash),
    ];
    format!("{}\r\n", fields.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_typed_stays_in_its_field() {
        let entry = AuditEntry {
            number: 1,
            at: "t".into(),
            who: "=cmd|' /C calc'!A0".into(),
            from: String::new(),
            action: "image.push".into(),
            target: "a,\"b\"\nc".into(),
            result: "done".into(),
            reason: None,
            count: 2,
            request_id: "r".into(),
            node: 3,
            hash: "h".into(),
            ..AuditEntry::default()
        };
        let line = csv_line(&entry);
        assert_eq!(
            line,
            "1,t,'=cmd|' /C calc'!A0,,image.push,\"a,\"\"b\"\"\nc\",done,,2,r,3,h\r\n"
        );
        assert_eq!(CSV_HEAD.matches(',').count(), 11);
    }
}
