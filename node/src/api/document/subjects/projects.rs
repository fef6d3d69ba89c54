//! Projects: who is in them, which programs act for them, and what they keep.

use super::super::note::{Subject, delete, get, post, put};

const NO_PROJECT: &str = "project_not_found not_found";

pub fn projects() -> Subject {
    Subject {
        name: "Projects",
        about: "A project is the first part of its images' names; it owns visibility, members, quota \
                and policies.",
        notes: vec![
            get("/api/v1/projects", "Lists the projects that the asker may see")
                .about("By name, at most 1000 in one answer; a Link leads on."),
            post("/api/v1/projects", "Makes a project")
                .status(201)
                .refuses(400, "visibility_invalid")
                .refuses(404, "organization_not_found not_found")
                .refuses(409, "project_exists"),
            get("/api/v1/projects/{project}", "Shows a project").refuses(404, "project_not_found"),
            put("/api/v1/projects/{project}", "Changes a project")
                .refuses(400, "visibility_invalid owner_invalid")
                .refuses(403, "quota_exceeded")
                .refuses(404, NO_PROJECT)
                .refuses(409, "wrong_state"),
            delete("/api/v1/projects/{project}", "Removes an empty project")
                .refuses(404, NO_PROJECT)
                .refuses(409, "in_use"),
            get("/api/v1/projects/{project}/members", "Lists a project's members")
                .about("By who has it, at most 1000 in one answer; a Link leads on.")
                .refuses(404, "project_not_found"),
            put("/api/v1/projects/{project}/members/{*grantee}", "Makes somebody a member")
                .refuses(400, "grantee_invalid role_invalid wrong_right")
                .refuses(404, NO_PROJECT),
            delete("/api/v1/projects/{project}/members/{*grantee}", "Takes a membership back")
                .refuses(400, "grantee_invalid")
                .refuses(404, NO_PROJECT),
        ],
    }
}

pub fn robots() -> Subject {
    Subject {
        name: "Robots",
        about: "Programs that act for a project, and jobs elsewhere that act as one of them.",
        notes: vec![
            get("/api/v1/projects/{project}/robots", "Lists a project's robots")
                .refuses(404, "project_not_found"),
            post(
                "/api/v1/projects/{project}/robots",
                "Makes a robot; its secret is shown this once",
            )
            .about("One that is there gets a new secret.")
            .status(201)
            .refuses(400, "scope_invalid ttl_invalid")
            .refuses(404, NO_PROJECT),
            delete("/api/v1/projects/{project}/robots/{robot}", "Removes a robot")
                .refuses(404, NO_PROJECT),
            get("/api/v1/projects/{project}/workload-rules", "Lists whose tokens act as a robot")
                .refuses(404, "project_not_found"),
            post("/api/v1/projects/{project}/workload-rules", "Says whose tokens act as a robot")
                .status(201)
                .refuses(400, "issuer_unknown rule_invalid")
                .refuses(404, "project_not_found robot_not_found not_found"),
            delete("/api/v1/projects/{project}/workload-rules/{rule}", "Removes such a rule")
                .refuses(404, NO_PROJECT),
        ],
    }
}

pub fn retention() -> Subject {
    Subject {
        name: "Retention",
        about: "What a project keeps, and what nobody may change in it.",
        notes: vec![
            get("/api/v1/projects/{project}/policy", "Shows a project's policy")
                .refuses(404, "project_not_found policy_not_found"),
            put("/api/v1/projects/{project}/policy", "Sets a project's policy")
                .refuses(400, "policy_invalid")
                .refuses(404, NO_PROJECT)
                .refuses(409, "policy_changed"),
            delete("/api/v1/projects/{project}/policy", "Removes a project's policy")
                .refuses(404, "project_not_found policy_not_found not_found"),
            post("/api/v1/projects/{project}/retention/dry-run", "Says what a run would do now")
                .refuses(400, "policy_invalid")
                .refuses(404, "project_not_found policy_not_found"),
            post("/api/v1/projects/{project}/retention/run", "Carries a project's policy out")
                .refuses(404, "project_not_found policy_not_found not_found")
                .refuses(409, "retention_under_way policy_changed"),
        ],
    }
}
