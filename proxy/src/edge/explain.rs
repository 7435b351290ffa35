//! `portcullis explain`: what the gate would answer to a request, and why. It asks the same code that serves, in the same
//! order, and never a socket: whether the password is right is the one thing that it takes for granted.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, ValueHint};

use super::plan::Plan;
use super::worker::Site;
use crate::auth::Principal;
use crate::auth::principal::check_principal;
use crate::config::{Config, Kind, Rule};
use crate::http::RequestHead;
use crate::http::head::{self, Limits};
use crate::policy::{Decision, Policy};
use crate::registry::Access;
use crate::registry::endpoint::classify;
use crate::reply::Failure;
use crate::verdict::{self, Answer, Refusal, Verdict};

/// The exit code for a request that would be refused.
const REFUSED: u8 = 3;

/// Flags of `explain`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct ExplainArgs {
    /// The configuration file (TOML) [variable: PORTCULLIS_CONFIG]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// Who asks, logged in with the right password; "anonymous": without a login
    #[arg(long, value_name = "NAME")]
    pub user: String,

    /// The name by which the client calls the gate. Default: the default site's, else the first site's
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,

    /// The method, such as GET
    pub method: String,

    /// The target, path and query, such as /v2/team-a/app/manifests/latest
    pub target: String,
}

const EXAMPLES: &str = "\
Takes for granted that the password is right, and asks no auth backend.
Exit code 0: allowed; 3: refused; 1: no answer, for the reason that is said.

Examples:
  portcullis explain --config portcullis.toml --user alice GET /v2/team-a/app/manifests/latest
  portcullis explain --config portcullis.toml --user anonymous GET /v2/";

/// Prints the explanation.
///
/// # Errors
/// When the user's name cannot be one, or standard output is closed.
pub fn run(args: &ExplainArgs, config: &Config, policy: &Policy) -> anyhow::Result<ExitCode> {
    let words = [Some(&args.method), Some(&args.target), args.host.as_ref()];
    if words.into_iter().flatten().any(|word| word.contains(char::is_control)) {
        bail!("METHOD, TARGET and --host are words of one line: leave control characters out");
    }
    let principal = match args.user.as_str() {
        "anonymous" => Principal::Anonymous,
        name => {
            check_principal(name).map_err(|why| anyhow!("--user: the user name {why}"))?;
            Principal::user(name)
        }
    };
    let mut page = Page::default();
    let allowed = Case { args, config, policy, principal: &principal }.explain(&mut page);
    std::io::stdout().lock().write_all(page.0.as_bytes()).context("standard output")?;
    Ok(if allowed { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

/// Lines of a word and what is to say of it.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, word: &str, text: &str) {
        // Writing into a String does not fail.
        let _ = writeln!(self.0, "{word:<10}{}", text.trim_end());
    }

    fn refused(&mut self, failure: &Failure) -> bool {
        self.line("verdict", &format!("refused with {}", failure.status()));
        self.line("why", &failure.message());
        false
    }
}

struct Case<'c> {
    args: &'c ExplainArgs,
    config: &'c Config,
    policy: &'c Policy,
    principal: &'c Principal,
}

impl Case<'_> {
    /// Whether the request would be allowed.
    fn explain(&self, page: &mut Page) -> bool {
        page.line("request", &format!("{} {}", self.args.method, self.args.target));
        page.line("user", &self.principal.to_string());
        let bytes = format!("{} {} HTTP/1.1\r\nHost: {}\r\n\r\n", self.args.method, self.args.target, self.host());
        let limits = &self.config.limits;
        let limits = Limits { head_bytes: limits.head_bytes, target_bytes: limits.target_bytes, fields: limits.fields };
        match head::request(bytes.as_bytes(), &limits) {
            Ok(head) => self.plan(&head, page),
            Err(reject) => page.refused(&Failure::Reject(reject)),
        }
    }

    fn host(&self) -> &str {
        let sites = &self.config.sites;
        let default = sites.iter().find(|site| site.hosts.is_empty()).or(sites.first());
        let named = default.and_then(|site| site.hosts.first()).map_or("localhost", String::as_str);
        self.args.host.as_deref().unwrap_or(named)
    }

    fn plan(&self, head: &RequestHead<'_>, page: &mut Page) -> bool {
        let sites: Vec<Site> = self.config.sites.iter().map(unresolved).collect();
        let plan = match Plan::make(&sites, head) {
            Ok(plan) => plan,
            Err((failure, _)) => return page.refused(&failure),
        };
        page.line("site", &describe(&self.config.sites[plan.site]));
        if sites[plan.site].kind == Kind::Registry
            && let Ok(classified) = classify(head.method, head.target)
        {
            page.line("endpoint", classified.endpoint.as_str());
        }
        if verdict::open(head.method, &plan.target).is_some() {
            page.line("verdict", "allowed");
            page.line("why", "this health check is open to everybody, without a login");
            return true;
        }
        self.accesses(plan.accesses(false), page);
        let mut verdict = self.verdict(plan.accesses(false));
        if let (Err(Refusal::Forbidden { .. }), Some(plain)) = (&verdict, &plan.target_without_mount) {
            verdict = self.verdict(plan.accesses(true));
            if verdict.is_ok() {
                page.line("mount", "left out: no right to pull from the other repository; the client then uploads");
                page.line("target", plain);
            }
        }
        self.outcome(&verdict, plan.accesses(false).is_empty(), page)
    }

    /// As the gate does, for a login whose password is right.
    fn verdict(&self, accesses: &[Access]) -> Verdict {
        match self.principal {
            Principal::Anonymous => {
                verdict::anonymous(self.policy, accesses).ok_or(Refusal::Unauthenticated { challenge: None })
            }
            user => verdict::decide(&Answer::Known(user.clone().into()), self.policy, accesses),
        }
    }

    fn accesses(&self, accesses: &[Access], page: &mut Page) {
        if accesses.is_empty() {
            page.line("access", "a login");
        }
        for access in accesses {
            page.line("access", &access.to_string());
            let by = match self.policy.decide(self.principal, access) {
                Decision::Allow { rule: Some(number) } => match self.config.rules.get(number - 1) {
                    Some(rule) => format!("{number}: {}", text(rule)),
                    None => number.to_string(),
                },
                Decision::Allow { rule: None } => "no rules: every login may do everything".to_owned(),
                Decision::Deny if self.policy.is_open() => {
                    "no rules: a login may do everything, nobody else".to_owned()
                }
                Decision::Deny => format!("none of {} grants it", self.config.rules.len()),
            };
            page.line("  rule", &by);
        }
    }

    fn outcome(&self, verdict: &Verdict, login_only: bool, page: &mut Page) -> bool {
        match verdict {
            Ok(permit) => {
                page.line("verdict", "allowed");
                page.line(
                    "why",
                    &match permit.rule() {
                        Some(number) => format!("rule {number} grants it"),
                        None if login_only => "a login is enough".to_owned(),
                        None => "there are no rules, so a login is enough".to_owned(),
                    },
                );
                if self.config.auth.backend.is_some() && *self.principal != Principal::Anonymous {
                    page.line("but", "a login that the auth backend checks may be refused there");
                }
                true
            }
            Err(refusal) => {
                let refused = page.refused(&Failure::Refused(refusal.clone()));
                if self.config.auth.backend.is_some() && *self.principal == Principal::Anonymous {
                    page.line("but", "the auth backend is asked, and may let it in");
                }
                refused
            }
        }
    }
}

/// A site whose upstreams nobody looks up: nothing is sent there.
fn unresolved(site: &crate::config::Site) -> Site {
    Site { hosts: site.hosts.clone(), kind: site.kind, public_url: site.public_url.clone(), upstreams: Vec::new() }
}

fn describe(site: &crate::config::Site) -> String {
    let hosts = if site.hosts.is_empty() { "(default)".to_owned() } else { site.hosts.join(" ") };
    let kind = match site.kind {
        Kind::Registry => "registry",
        Kind::Http => "http",
    };
    let upstreams: Vec<String> = site.upstreams.iter().map(ToString::to_string).collect();
    format!("{hosts}, {kind}, {}", upstreams.join(" "))
}

/// The rule as the file has it, on one line.
fn text(rule: &Rule) -> String {
    let mut text = format!("who = {:?}", rule.who);
    if !rule.repositories.is_empty() {
        let _ = write!(text, ", repositories = {:?}", rule.repositories);
    }
    let _ = write!(text, ", actions = {:?}", rule.actions);
    text
}
