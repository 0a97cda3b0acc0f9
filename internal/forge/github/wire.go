package github

import (
	"strings"
	"time"

	"gpuserver"
	"gpuserver/internal/forge"
)

// wireJob is a job as both deliveries and answers carry it.
type wireJob struct {
	ID           int64    `json:"id"`
	RunID        int64    `json:"run_id"`
	RunAttempt   int      `json:"run_attempt"`
	Name         string   `json:"name"`
	WorkflowName string   `json:"workflow_name"`
	Labels       []string `json:"labels"`
	Status       string   `json:"status"`
	Conclusion   string   `json:"conclusion"`
	HeadSHA      string   `json:"head_sha"`
	HeadBranch   string   `json:"head_branch"`
	HTMLURL      string   `json:"html_url"`
	RunnerID     int64    `json:"runner_id"`
	RunnerName   string   `json:"runner_name"`
	CreatedAt    stamp    `json:"created_at"`
	StartedAt    stamp    `json:"started_at"`
	CompletedAt  stamp    `json:"completed_at"`
}

func (j *wireJob) job(repo forge.Repo) forge.Job {
	return forge.Job{
		ID: j.ID, RunID: j.RunID, RunAttempt: j.RunAttempt,
		Name: j.Name, Workflow: j.WorkflowName, Labels: j.Labels,
		State: jobState(j.Status), Conclusion: j.Conclusion,
		HeadSHA: j.HeadSHA, HeadBranch: j.HeadBranch, URL: j.HTMLURL,
		RunnerID: j.RunnerID, RunnerName: j.RunnerName,
		CreatedAt: j.CreatedAt.Time, StartedAt: j.StartedAt.Time, CompletedAt: j.CompletedAt.Time,
		Repo: repo,
	}
}

// jobState maps the status of an answer. A job that is pending or requested is
// held back by a concurrency group, and no runner can take it yet.
func jobState(status string) gpuserver.ForgeState {
	switch status {
	case "pending", "requested":
		return gpuserver.ForgeWaiting
	}
	return gpuserver.ForgeState(status)
}

type wireRepository struct {
	ID            int64  `json:"id"`
	FullName      string `json:"full_name"`
	DefaultBranch string `json:"default_branch"`
	Private       bool   `json:"private"`
}

func (r *wireRepository) repo(installation int64) forge.Repo {
	return forge.Repo{Name: r.FullName, ID: r.ID, InstallationID: installation, DefaultBranch: r.DefaultBranch}
}

// named reports whether the repository has a name of the form "owner/name".
func (r *wireRepository) named() bool {
	owner, name, ok := strings.Cut(r.FullName, "/")
	return ok && owner != "" && name != "" && !strings.Contains(name, "/")
}

type wireActor struct {
	Login string `json:"login"`
	ID    int64  `json:"id"`
	Type  string `json:"type"` // "User", "Bot", …
}

func (a wireActor) actor() forge.Actor { return forge.Actor{Login: a.Login, ID: a.ID} }

// stamp is a time that may be null or unreadable, which is no time at all: a
// job is not lost for a date.
type stamp struct{ time.Time }

// UnmarshalJSON implements json.Unmarshaler and never fails.
func (s *stamp) UnmarshalJSON(b []byte) error {
	s.Time = time.Time{}
	if len(b) < 2 || b[0] != '"' {
		return nil
	}
	if t, err := time.Parse(time.RFC3339, string(b[1:len(b)-1])); err == nil {
		s.Time = t.UTC()
	}
	return nil
}
