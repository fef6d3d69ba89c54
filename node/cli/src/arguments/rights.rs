//! The grammar of the commands about people and rights.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use shoal_content::{AccountName, ProjectName, RepositoryName};

/// Who a right is given to, in the help.
const GRANTEE: &str = "user:NAME, group:ORGANIZATION/NAME or organization:NAME";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UserRole {
    User,
    /// Sees everything, changes nothing
    Auditor,
    Admin,
}

#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// All accounts
    List,
    /// Make an account; a password is made up and shown once where none is given
    Create {
        name: AccountName,
        #[arg(long, value_enum, default_value = "user")]
        role: UserRole,
        /// Where it gets mail
        #[arg(long)]
        email: Option<String>,
        /// Read the password from standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// Make an account for each line of an htpasswd file (NAME:HASH, bcrypt), where the nodes' settings
    /// have accounts.bcrypt = true; accounts that are there stay as they are
    Import { file: PathBuf },
    /// Change somebody's role, password or e-mail address
    Set {
        name: String,
        #[arg(long, value_enum)]
        role: Option<UserRole>,
        /// Where it gets mail; empty for nowhere
        #[arg(long)]
        email: Option<String>,
        /// Read the new password from standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// Delete an account with its tokens and rights
    Delete {
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Your second factor: codes of an authenticator besides the password
    #[command(subcommand)]
    SecondFactor(SecondFactorCommand),
    /// Your passkeys; they are registered in a browser
    #[command(subcommand)]
    Passkey(PasskeyCommand),
    /// Your open sessions, or somebody else's
    Sessions {
        /// Whose [default: your own]
        #[arg(long)]
        user: Option<String>,
    },
    /// End one of your sessions, or all but this one
    EndSession {
        #[arg(required_unless_present_any = ["others", "user"])]
        id: Option<String>,
        /// All of yours but the one you are in
        #[arg(long, conflicts_with = "id")]
        others: bool,
        /// All of somebody's; for administrators
        #[arg(long, conflicts_with_all = ["id", "others"])]
        user: Option<String>,
    },
    /// Whom other issuers vouch for as this user
    Identities { user: String },
    /// Let somebody of another issuer's be this user here
    Link {
        user: String,
        /// As the issuer's tokens have it
        issuer: String,
        /// The claim 'sub'
        subject: String,
    },
    /// Take that away
    Unlink { user: String, issuer: String, subject: String },
    /// All that is kept about you, as JSON
    Export,
    /// Ask to be removed, after a time in which you may take it back
    Leave {
        /// Read the current password from standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// Take that back
    Stay,
    /// Change your own password
    Password {
        /// Read two lines from standard input: the current one, and the new one
        #[arg(long)]
        password_stdin: bool,
    },
    /// Say where you get mail
    Email {
        /// NAME@HOST; empty for nowhere
        email: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum SecondFactorCommand {
    /// Whether there is one
    Show,
    /// Begin: gives the secret for an authenticator, and then asks for its first code
    Add {
        /// Read the current password from standard input, and leave the code to 'confirm'
        #[arg(long)]
        password_stdin: bool,
    },
    /// Confirm with a first code; prints the recovery codes
    Confirm { code: String },
    /// New recovery codes, in place of those before
    RecoveryCodes { code: String },
    /// Take it away, with a code or a recovery code
    Remove {
        #[arg(required_unless_present = "user")]
        code: Option<String>,
        /// Somebody's who has lost it; for administrators
        #[arg(long, conflicts_with = "code")]
        user: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum PasskeyCommand {
    /// Your passkeys, or somebody else's
    List {
        /// Whose [default: your own]
        #[arg(long)]
        user: Option<String>,
    },
    /// Call one otherwise
    Rename { id: String, name: String },
    /// Say whether, while it is there, your password alone lets you in
    SecondFactor {
        id: String,
        #[arg(value_parser = ["on", "off"])]
        wanted: String,
        /// Read the current password from standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// Remove one of yours, or all of somebody's
    Remove {
        #[arg(required_unless_present = "user")]
        id: Option<String>,
        /// Read the current password from standard input
        #[arg(long)]
        password_stdin: bool,
        /// All of somebody's who has lost them; for administrators
        #[arg(long, conflicts_with_all = ["id", "password_stdin"])]
        user: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scope {
    /// Pull and list
    #[value(name = "repo:read")]
    Read,
    /// Push, and what repo:read does
    #[value(name = "repo:write")]
    Write,
    /// Delete versions, tags and images, and what repo:read does
    #[value(name = "repo:delete")]
    Delete,
    /// What else you may: settings, members, accounts
    #[value(name = "admin")]
    Admin,
}

impl Scope {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "repo:read",
            Self::Write => "repo:write",
            Self::Delete => "repo:delete",
            Self::Admin => "admin",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum AccessTokenCommand {
    /// Make a token for programs that act for you; its text is shown once
    Create {
        /// What you call it
        name: String,
        /// What it may be used for; may be given several times [default: repo:read]
        #[arg(long, value_enum)]
        scope: Vec<Scope>,
        /// How long it holds, for instance 30d [default: for ever]
        #[arg(long, value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
    },
    /// Your tokens; their text is not shown again
    List,
    /// Delete a token, which is no good from then on
    Delete { id: String },
}

#[derive(Debug, Subcommand)]
pub enum OrganizationCommand {
    /// Those that you may see
    List,
    /// Make an organization
    Create {
        name: AccountName,
        #[arg(long, default_value = "")]
        description: String,
        /// Its first owner [default: you]
        #[arg(long)]
        owner: Option<AccountName>,
    },
    /// Delete an organization that owns no project any more
    Delete { name: AccountName },
    /// Who is in it
    Members { name: AccountName },
    /// Take a user in, or change what it is there
    Add {
        name: AccountName,
        user: AccountName,
        /// As an owner, who administers all of its projects
        #[arg(long)]
        owner: bool,
    },
    /// Put a user out of it and of its groups
    Remove { name: AccountName, user: AccountName },
    /// Its groups with their members
    Groups { name: AccountName },
    /// Make a group
    CreateGroup {
        name: AccountName,
        group: AccountName,
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Delete a group, with the rights that it gave
    DeleteGroup { name: AccountName, group: AccountName },
    /// Take a member of the organization into a group
    AddToGroup { name: AccountName, group: AccountName, user: AccountName },
    /// Put a user out of a group; it stays in the organization
    RemoveFromGroup { name: AccountName, group: AccountName, user: AccountName },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Visibility {
    /// Anyone pulls, also without an account
    Public,
    /// The members of the organization that owns it pull
    Organization,
    /// Members pull
    Private,
}

impl Visibility {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Organization => "organization",
            Self::Private => "private",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProjectRole {
    /// Pulls what it knows the name of
    LimitedGuest,
    /// Pulls and lists
    Guest,
    /// Pushes besides; to a public project it only reads
    Developer,
    /// Pushes and deletes
    Maintainer,
    /// Settings, members and robots besides
    Admin,
}

impl ProjectRole {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LimitedGuest => "limited-guest",
            Self::Guest => "guest",
            Self::Developer => "developer",
            Self::Maintainer => "maintainer",
            Self::Admin => "admin",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum ProjectCommand {
    /// The projects that you can see
    List,
    /// Make a project; a first push does so as well
    Create {
        name: ProjectName,
        /// The organization that owns it [default: you do]
        #[arg(long)]
        organization: Option<AccountName>,
        #[arg(long, value_enum, default_value = "private")]
        visibility: Visibility,
        #[arg(long, default_value = "")]
        description: String,
    },
    /// One project with its members
    Show { name: ProjectName },
    /// Change a project
    Set {
        name: ProjectName,
        #[arg(long, value_enum)]
        visibility: Option<Visibility>,
        #[arg(long)]
        description: Option<String>,
        /// Give it to user:NAME or organization:NAME
        #[arg(long)]
        owner: Option<String>,
    },
    /// Delete a project that has no images any more
    Delete { name: ProjectName },
    /// Let somebody in, or change what it is there
    Add {
        name: ProjectName,
        #[arg(help = GRANTEE)]
        who: String,
        #[arg(value_enum)]
        role: ProjectRole,
    },
    /// Put somebody out
    Remove {
        name: ProjectName,
        #[arg(help = GRANTEE)]
        who: String,
    },
}

#[derive(Debug, Args)]
pub struct AuditSearch {
    #[arg(long)]
    pub who: Option<String>,
    /// image.pull, or image for all that is done to images
    #[arg(long)]
    pub action: Option<String>,
    /// What targets begin with, for instance shop/
    #[arg(long)]
    pub target: Option<String>,
    /// Only what was refused
    #[arg(long)]
    pub refused: bool,
    /// For instance 2026-01-31T12:00:00Z
    #[arg(long)]
    pub since: Option<String>,
    #[arg(long)]
    pub until: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuditFormat {
    Csv,
    /// One object on each line
    Json,
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// The newest entries
    List {
        #[command(flatten)]
        search: AuditSearch,
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// All entries, the newest first, to standard output
    Export {
        #[command(flatten)]
        search: AuditSearch,
        #[arg(long, value_enum, default_value = "json")]
        format: AuditFormat,
        /// Also those that were moved to storage, whatever was searched for
        #[arg(long)]
        archives: bool,
    },
    /// What was moved to storage
    Archives,
    /// Go along the chain of hashes, and print its end
    Verify {
        /// The end that was noted another time: NUMBER:HASH
        #[arg(long)]
        head: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum BlockCommand {
    /// Accounts and addresses that are locked out, and until when
    List,
    /// Let somebody in again: account:NAME or address:IP
    Remove { who: String },
}

pub const QUOTAS: &str = "\
OF is user:NAME, group:ORGANIZATION/NAME, organization:NAME, project:NAME or cluster; or default:user,
default:group, default:organization, default:project for each that has no limits of its own.

A project pays once for each blob, manifest and disk that it holds, with its logical length, whatever
others hold. Its owner pays for it, too, and so do the groups that an owning user is a member of.
Uploads under way have reserved what they announced.";

/// So many, with a unit or without; or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Option<u64>);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, u64); 10] = [
            ("", 1),
            ("B", 1),
            ("KB", 1000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
        ];
        if text == "none" {
            return Ok(Self(None));
        }
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, bytes)| *bytes);
        let limit = number.parse::<u64>().ok().zip(unit);
        let limit = limit.and_then(|(number, unit)| number.checked_mul(unit));
        let wrong = || "a number, or one with a unit as 10GiB or 500MB, or none".to_owned();
        limit.map(|limit| Self(Some(limit))).ok_or_else(wrong)
    }
}

#[derive(Debug, Subcommand)]
pub enum QuotaCommand {
    /// All limits that were set
    List,
    /// What somebody holds and may hold
    Show { of: String },
    /// Set limits; those that are not given stay
    #[command(group = clap::ArgGroup::new("limit").args(["bytes", "images", "image_bytes"]).required(true).multiple(true))]
    Set {
        of: String,
        /// All content together, for instance 10GiB, or none
        #[arg(long)]
        bytes: Option<Limit>,
        /// How many images, or none
        #[arg(long)]
        images: Option<Limit>,
        /// One version of an image, or none
        #[arg(long)]
        image_bytes: Option<Limit>,
    },
    /// Take limits away: the default holds then
    Clear { of: String },
    /// Count everything anew, and compare
    Check,
}

#[derive(Debug, Args)]
pub struct CreateRobot {
    pub project: ProjectName,
    pub name: AccountName,
    #[arg(long, default_value = "")]
    pub description: String,
    /// What it may do; may be given several times [default: repo:read]
    #[arg(long, value_enum)]
    pub scope: Vec<Scope>,
    /// A repository that it is held to; may be given several times [default: all of the project]
    #[arg(long)]
    pub repository: Vec<RepositoryName>,
    /// How long it lives, for instance 90d [default: for ever]
    #[arg(long, value_parser = humantime::parse_duration)]
    pub ttl: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub enum RobotCommand {
    /// Robots of a project
    List { project: ProjectName },
    /// Make a robot, or give the one of that name a new secret; it is shown once
    Create(CreateRobot),
    /// Which jobs of other issuers may act as robots
    Rules { project: ProjectName },
    /// Let jobs of another issuer act as a robot, by tokens of their own
    Allow(AllowWorkload),
    /// Take such a rule away
    Disallow { project: ProjectName, rule: AccountName },
    /// Delete a robot, whose secret is no good from then on
    Delete { project: ProjectName, name: AccountName },
}

#[derive(Debug, Args)]
pub struct AllowWorkload {
    pub project: ProjectName,
    /// The robot's name, without robot$PROJECT+
    pub robot: AccountName,
    /// What the rule is called [default: as the robot]
    #[arg(long)]
    pub rule: Option<AccountName>,
    /// As the tokens have it, for instance https://token.actions.githubusercontent.com
    #[arg(long)]
    pub issuer: String,
    /// Of the claim 'sub'; '*' is any characters: repo:acme/shop:ref:refs/heads/*
    #[arg(long)]
    pub subject: String,
    /// NAME=TEXT that a further claim has to be; may be given several times
    #[arg(long, value_parser = claim)]
    pub claim: Vec<(String, String)>,
}

fn claim(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("a claim is NAME=TEXT")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Access {
    Read,
    Write,
    Admin,
}

impl Access {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}
