//! A real slapd on free ports of this machine, with people and groups; killed when it is dropped.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use shoal_content::ClusterId;
use shoal_p2p::identity::Authority;
use tempfile::TempDir;
use uuid::Uuid;

use crate::node::{free_tcp, run};
use crate::wait::until;

pub const BASE: &str = "dc=example,dc=org";
pub const SEARCHER: &str = "cn=searcher,dc=example,dc=org";
pub const SEARCHER_PASSWORD: &str = "who searches";
const ROOT: &str = "cn=root,dc=example,dc=org";
const ROOT_PASSWORD: &str = "of all";

/// `bind_anon_dn` lets a bind with an empty password succeed, as RFC 4513 warns of.
const CONFIGURATION: &str = r#"
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/nis.schema
pidfile FOLDER/pid
modulepath /usr/lib/ldap
moduleload back_mdb
allow bind_anon_dn
TLSCACertificateFile FOLDER/ca.pem
TLSCertificateFile FOLDER/tls.pem
TLSCertificateKeyFile FOLDER/tls.key
database mdb
suffix "dc=example,dc=org"
rootdn "cn=root,dc=example,dc=org"
rootpw "of all"
directory FOLDER/data
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="cn=searcher,dc=example,dc=org" read by * none
"#;

const TREE: &str = "
dn: dc=example,dc=org
objectClass: domain
dc: example

dn: cn=searcher,dc=example,dc=org
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: searcher
userPassword: who searches

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people

dn: ou=more,ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: more

dn: ou=groups,dc=example,dc=org
objectClass: organizationalUnit
ou: groups
";

pub struct Directory {
    pub folder: TempDir,
    ports: (u16, u16),
    child: Option<Child>,
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn dn(name: &str) -> String {
    format!("uid={name},ou=people,{BASE}")
}

impl Directory {
    pub async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = folder.path();
        let authority = Authority::create(&ClusterId::from_uuid(Uuid::new_v4()))?;
        let made = authority.issue_http(&["127.0.0.1".to_owned()])?;
        fs::write(at.join("tls.key"), made.key_pem.as_bytes())?;
        fs::write(at.join("tls.pem"), made.chain_pem)?;
        fs::write(at.join("ca.pem"), authority.certificate_pem())?;
        fs::create_dir(at.join("data"))?;
        let text = CONFIGURATION.replace("FOLDER", &at.display().to_string());
        fs::write(at.join("slapd.conf"), text)?;
        fs::write(at.join("tree.ldif"), TREE)?;
        let configuration = at.join("slapd.conf").display().to_string();
        let tree = at.join("tree.ldif").display().to_string();
        run("/usr/sbin/slapadd", &["-f", &configuration, "-l", &tree])
            .context("slapd is not here; ./dev test installs it")?;
        let ports = (free_tcp()?.port(), free_tcp()?.port());
        let urls = format!("ldap://127.0.0.1:{}/ ldaps://127.0.0.1:{}/", ports.0, ports.1);
        let child = Command::new("/usr/sbin/slapd")
            .args(["-f", &configuration, "-h", &urls, "-d", "0"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(at.join("log"))?)
            .spawn()?;
        let directory = Self { folder, ports, child: Some(child) };
        until("slapd", async || {
            let whoami = directory.client("ldapwhoami").output()?;
            Ok(whoami.status.success().then_some(()))
        })
        .await?;
        Ok(directory)
    }

    /// Without TLS, or before it.
    pub fn url(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.ports.0)
    }

    pub fn tls_url(&self) -> String {
        format!("ldaps://127.0.0.1:{}", self.ports.1)
    }

    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["-x", "-H", &self.url(), "-D", ROOT, "-w", ROOT_PASSWORD]);
        command
    }

    /// Changes the tree (LDIF).
    pub fn change(&self, ldif: &str) -> Result<()> {
        let path = self.folder.path().join("change.ldif");
        fs::write(&path, ldif)?;
        let output = self.client("ldapmodify").arg("-f").arg(&path).output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Somebody new, below `place`.
    pub fn add(&self, name: &str, place: &str, password: &str) -> Result<()> {
        self.change(&format!(
            "dn: uid={name},{place}\nchangetype: add\nobjectClass: inetOrgPerson\nuid: {name}\n\
             cn: {name}\nsn: {name}\nmail: {name}@example.com\nuserPassword: {password}\n"
        ))
    }

    pub fn add_group(&self, name: &str, members: &[&str]) -> Result<()> {
        let members: String =
            members.iter().map(|member| format!("member: {}\n", dn(member))).collect();
        self.change(&format!(
            "dn: cn={name},ou=groups,{BASE}\nchangetype: add\nobjectClass: groupOfNames\n\
             cn: {name}\n{members}"
        ))
    }
}
