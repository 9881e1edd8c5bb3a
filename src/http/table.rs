//! One table of routes: path, method, who may call it, and what it leads to. Whatever is not in it is denied.

use super::webhooks::Action;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Whoever has signed the message: the route sees to that.
    Signed,
    /// Admins and viewers.
    Read,
    /// Admins.
    Write,
    /// Admins, and the company itself.
    OwnWrite,
    /// Admins, viewers, and the company itself.
    OwnRead,
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Health,
    Ready,
    Summary,
    Requests,
    Request,
    Requeue,
    Batches,
    Batch,
    Cancel,
    Provider,
    Resume,
    Companies,
    Switches,
    Inner,
    Verify,
    IngestRequests,
    IngestSessions,
    Session,
    Budget,
    SetBudget,
    Timeline,
    OwnRequests,
    OwnRequest,
    OwnTimeline,
    OwnSessions,
    ExportRequests,
    ExportSessions,
    Webhooks(Action),
    Sources,
    ReadSource,
    CreateCompany,
    Company,
    ChangeCompany,
    SuspendCompany,
    ResumeCompany,
    Keys,
    CreateKey,
    RotateKey,
    RevokeKey,
    AdminKeys,
    CreateAdminKey,
    RotateAdminKey,
    RevokeAdminKey,
    EraseSession,
    EraseCompany,
    Erasures,
    Erasure,
    Retention,
    Hint,
}

impl Route {
    /// Whether it has parameters in its query, which it then checks itself. Health checks may carry what their programs
    /// like.
    pub const fn has_parameters(self) -> bool {
        matches!(
            self,
            Self::Health
                | Self::Ready
                | Self::Summary
                | Self::Requests
                | Self::Batches
                | Self::Session
                | Self::OwnRequests
                | Self::OwnRequest
                | Self::OwnSessions
                | Self::ExportRequests
                | Self::ExportSessions
                | Self::Webhooks(_)
                | Self::Erasures
        )
    }
}

/// One route.
#[derive(Debug)]
pub struct Entry {
    /// The method; `GET` answers `HEAD`, too.
    pub method: &'static str,
    /// The path; a part in braces stands for any text.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    /// Where it leads.
    pub route: Route,
}

const fn entry(method: &'static str, path: &'static str, access: Access, route: Route) -> Entry {
    Entry { method, path, access, route }
}

/// Every route. Of two paths that fit, the first one counts.
pub static TABLE: &[Entry] = &[
    entry("GET", "/healthz", Access::Open, Route::Health),
    entry("GET", "/readyz", Access::Open, Route::Ready),
    entry("GET", "/api/admin/legacy/summary", Access::Read, Route::Summary),
    entry("GET", "/api/admin/legacy/requests", Access::Read, Route::Requests),
    entry("POST", "/api/admin/legacy/requests/requeue", Access::Write, Route::Requeue),
    entry("GET", "/api/admin/legacy/requests/{id}", Access::Read, Route::Request),
    entry("GET", "/api/admin/legacy/requests/{id}/timeline", Access::Read, Route::Timeline),
    entry("GET", "/api/admin/legacy/batches", Access::Read, Route::Batches),
    entry("GET", "/api/admin/legacy/batches/{id}", Access::Read, Route::Batch),
    entry("POST", "/api/admin/legacy/batches/{id}/cancel", Access::Write, Route::Cancel),
    entry("GET", "/api/admin/legacy/provider", Access::Read, Route::Provider),
    entry("POST", "/api/admin/legacy/provider/resume", Access::Write, Route::Resume),
    entry("GET", "/api/admin/legacy/companies", Access::Read, Route::Companies),
    entry("GET", "/api/admin/legacy/switches", Access::Read, Route::Switches),
    entry("GET", "/api/admin/legacy/health", Access::Read, Route::Inner),
    entry("GET", "/api/admin/legacy/verify", Access::Read, Route::Verify),
    entry("POST", "/api/v1/companies/{companyId}/requests", Access::OwnWrite, Route::IngestRequests),
    entry("GET", "/api/v1/companies/{companyId}/requests", Access::OwnRead, Route::OwnRequests),
    entry("GET", "/api/v1/companies/{companyId}/requests/{id}", Access::OwnRead, Route::OwnRequest),
    entry("GET", "/api/v1/companies/{companyId}/requests/{id}/timeline", Access::OwnRead, Route::OwnTimeline),
    entry("POST", "/api/v1/companies/{companyId}/sessions", Access::OwnWrite, Route::IngestSessions),
    entry("GET", "/api/v1/companies/{companyId}/budget", Access::OwnRead, Route::Budget),
    entry("PUT", "/api/v1/companies/{companyId}/budget", Access::Write, Route::SetBudget),
    entry("GET", "/api/v1/companies/{companyId}/sessions", Access::OwnRead, Route::OwnSessions),
    entry("GET", "/api/v1/companies/{companyId}/sessions/{id}", Access::OwnRead, Route::Session),
    entry("GET", "/api/v1/companies/{companyId}/export/requests", Access::OwnRead, Route::ExportRequests),
    entry("GET", "/api/v1/companies/{companyId}/export/sessions", Access::OwnRead, Route::ExportSessions),
    entry("POST", "/api/v1/companies/{companyId}/webhooks", Access::OwnWrite, Route::Webhooks(Action::Make)),
    entry("GET", "/api/v1/companies/{companyId}/webhooks", Access::OwnRead, Route::Webhooks(Action::List)),
    entry(
        "GET",
        "/api/v1/companies/{companyId}/webhooks/{id}",
        Access::OwnRead,
        Route::Webhooks(Action::Show),
    ),
    entry(
        "PUT",
        "/api/v1/companies/{companyId}/webhooks/{id}",
        Access::OwnWrite,
        Route::Webhooks(Action::Change),
    ),
    entry(
        "DELETE",
        "/api/v1/companies/{companyId}/webhooks/{id}",
        Access::OwnWrite,
        Route::Webhooks(Action::Delete),
    ),
    entry(
        "POST",
        "/api/v1/companies/{companyId}/webhooks/{id}/rotate",
        Access::OwnWrite,
        Route::Webhooks(Action::Rotate),
    ),
    entry(
        "POST",
        "/api/v1/companies/{companyId}/webhooks/{id}/test",
        Access::OwnWrite,
        Route::Webhooks(Action::Test),
    ),
    entry(
        "GET",
        "/api/v1/companies/{companyId}/webhooks/{id}/deliveries",
        Access::OwnRead,
        Route::Webhooks(Action::Deliveries),
    ),
    entry(
        "GET",
        "/api/v1/companies/{companyId}/webhooks/{id}/deliveries/{otherId}",
        Access::OwnRead,
        Route::Webhooks(Action::Delivery),
    ),
    entry(
        "POST",
        "/api/v1/companies/{companyId}/webhooks/{id}/deliveries/{otherId}/redeliver",
        Access::OwnWrite,
        Route::Webhooks(Action::Redeliver),
    ),
    entry("GET", "/api/v1/companies/{companyId}/sources", Access::OwnRead, Route::Sources),
    entry("POST", "/api/v1/companies/{companyId}/sources/{id}/read", Access::Write, Route::ReadSource),
    entry("POST", "/api/admin/legacy/companies", Access::Write, Route::CreateCompany),
    entry("GET", "/api/admin/legacy/companies/{id}", Access::Read, Route::Company),
    entry("PUT", "/api/admin/legacy/companies/{id}", Access::Write, Route::ChangeCompany),
    entry("POST", "/api/admin/legacy/companies/{id}/suspend", Access::Write, Route::SuspendCompany),
    entry("POST", "/api/admin/legacy/companies/{id}/resume", Access::Write, Route::ResumeCompany),
    // Not for the company itself: a stolen key must not make others, nor end the good ones.
    entry("GET", "/api/v1/companies/{companyId}/keys", Access::Read, Route::Keys),
    entry("POST", "/api/v1/companies/{companyId}/keys", Access::Write, Route::CreateKey),
    entry("POST", "/api/v1/companies/{companyId}/keys/{id}/rotate", Access::Write, Route::RotateKey),
    entry("DELETE", "/api/v1/companies/{companyId}/keys/{id}", Access::Write, Route::RevokeKey),
    entry("GET", "/api/admin/legacy/keys", Access::Read, Route::AdminKeys),
    entry("POST", "/api/admin/legacy/keys", Access::Write, Route::CreateAdminKey),
    entry("POST", "/api/admin/legacy/keys/{id}/rotate", Access::Write, Route::RotateAdminKey),
    entry("DELETE", "/api/admin/legacy/keys/{id}", Access::Write, Route::RevokeAdminKey),
    entry("POST", "/api/v1/companies/{companyId}/sessions/{id}/erase", Access::Write, Route::EraseSession),
    entry("POST", "/api/admin/legacy/companies/{id}/erase", Access::Write, Route::EraseCompany),
    entry("GET", "/api/admin/legacy/erasures", Access::Read, Route::Erasures),
    entry("GET", "/api/admin/legacy/erasures/{id}", Access::Read, Route::Erasure),
    entry("GET", "/api/admin/legacy/retention", Access::Read, Route::Retention),
    entry("POST", "/webhooks/openai", Access::Signed, Route::Hint),
];

/// The texts that stand where a path has braces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Params<'a> {
    /// `{companyId}`
    pub company: Option<&'a str>,
    /// `{id}`
    pub id: Option<&'a str>,
    /// `{otherId}`
    pub other: Option<&'a str>,
}

/// A path that is in the table.
#[derive(Debug)]
pub struct Found<'a> {
    /// The routes of the path, one a method.
    methods: Vec<&'static Entry>,
    /// What its braces stand for.
    pub params: Params<'a>,
}

impl Found<'_> {
    /// The route of a method.
    pub fn of(&self, method: &str) -> Option<&'static Entry> {
        let method = if method == "HEAD" { "GET" } else { method };
        self.methods.iter().find(|entry| entry.method == method).copied()
    }

    /// The methods that the path has, as the header `Allow` lists them.
    pub fn allowed(&self) -> String {
        let names =
            self.methods.iter().map(|entry| if entry.method == "GET" { "GET, HEAD" } else { entry.method });
        names.collect::<Vec<_>>().join(", ")
    }

    /// Whether it takes no token, with any method that it has.
    pub fn is_open(&self) -> bool {
        self.methods.iter().all(|entry| matches!(entry.access, Access::Open | Access::Signed))
    }
}

/// The routes of a path.
pub fn find<'a>(parts: &[&'a str]) -> Option<Found<'a>> {
    let (first, params) = TABLE.iter().find_map(|entry| Some((entry, fit(entry.path, parts)?)))?;
    let methods = TABLE.iter().filter(|entry| entry.path == first.path).collect();
    Some(Found { methods, params })
}

fn fit<'a>(path: &str, parts: &[&'a str]) -> Option<Params<'a>> {
    let mut params = Params::default();
    let mut parts = parts.iter();
    for expected in path.split('/').skip(1) {
        let part = *parts.next()?;
        let place = match expected {
            "{companyId}" => &mut params.company,
            "{id}" => &mut params.id,
            "{otherId}" => &mut params.other,
            same if same == part => continue,
            _ => return None,
        };
        if part.is_empty() {
            return None;
        }
        *place = Some(part);
    }
    if parts.next().is_none() { Some(params) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_with_what_stands_in_it() {
        let found = find(&["api", "v1", "companies", "demo", "sessions", "a b"]).unwrap();
        assert_eq!(found.params, Params { company: Some("demo"), id: Some("a b"), other: None });
        assert_eq!(found.of("HEAD").unwrap().route, Route::Session);
        assert_eq!((found.of("POST").is_none(), found.allowed().as_str()), (true, "GET, HEAD"));
        let requeue = find(&["api", "admin", "legacy", "requests", "requeue"]).unwrap();
        assert_eq!(requeue.allowed(), "POST", "a word of ours is no id");
        for none in [&["api", "v1"][..], &["healthz", ""], &["api", "admin", "legacy", "batches", ""]] {
            assert!(find(none).is_none(), "{none:?}");
        }
    }

    #[test]
    fn no_route_is_there_twice_and_what_belongs_to_a_company_names_it() {
        for (at, one) in TABLE.iter().enumerate() {
            let others = TABLE.iter().skip(at + 1);
            assert_eq!(
                others.filter(|other| (other.path, other.method) == (one.path, one.method)).count(),
                0
            );
            let own = matches!(one.access, Access::OwnRead | Access::OwnWrite);
            assert!(!own || one.path.contains("{companyId}"), "{}", one.path);
        }
    }
}
