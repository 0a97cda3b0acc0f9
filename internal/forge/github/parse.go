package github

import (
	"encoding/json"

	"gpuserver"
	"gpuserver/internal/forge"
)

// Parse reads a verified delivery's body. Fields that we do not know are passed
// over, ones that we know may be missing; events and actions that mean nothing
// to us are EventOther. The error is KindInvalid.
//
// A job's state is taken from the action, not from the status beside it: a job
// that a deployment rule let go arrives as "queued" with the status "waiting".
func Parse(eventName string, body []byte) (forge.Event, error) {
	var ev forge.Event
	var err error
	switch eventName {
	case "workflow_job":
		ev, err = parseJob(body)
	case "check_run":
		ev, err = parseCheck(body)
	case "check_suite":
		ev, err = parseSuite(body)
	case "installation", "installation_repositories", "repository":
		ev, err = parseGone(eventName, body)
	default:
		ev, err = parseOther(body)
	}
	if err != nil {
		return forge.Event{}, &gpuserver.Error{
			Kind: gpuserver.KindInvalid, Op: "parse " + eventName + " delivery",
			Public: "the " + eventName + " delivery cannot be read", Err: err,
		}
	}
	action := ev.Name
	ev.Name = eventName
	if action != "" {
		ev.Name += "." + action
	}
	return ev, nil
}

// envelope is what every delivery may carry.
type envelope struct {
	Action       string         `json:"action"`
	Repository   wireRepository `json:"repository"`
	Organization struct {
		Login string `json:"login"`
	} `json:"organization"`
	Installation struct {
		ID int64 `json:"id"`
	} `json:"installation"`
}

func (e *envelope) repo() forge.Repo { return e.Repository.repo(e.Installation.ID) }

// event is the event that means nothing to us. Its name is the action alone.
func (e *envelope) event() forge.Event {
	return forge.Event{Kind: forge.EventOther, Name: e.Action, Repo: e.repo()}
}

func parseOther(body []byte) (forge.Event, error) {
	var p envelope
	if err := json.Unmarshal(body, &p); err != nil {
		return forge.Event{}, err
	}
	return p.event(), nil
}

func parseJob(body []byte) (forge.Event, error) {
	var p struct {
		envelope
		Job wireJob `json:"workflow_job"`
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return forge.Event{}, err
	}
	ev := p.event()
	state := gpuserver.ForgeState(p.Action)
	if state.Rank() == 0 {
		return ev, nil
	}
	if p.Job.ID <= 0 || p.Job.RunID <= 0 || !p.Repository.named() {
		return ev, invalid("it names no job, run or repository")
	}
	ev.Kind = forge.EventJob
	ev.Job = p.Job.job(ev.Repo)
	ev.Job.State = state
	ev.Job.RepoPrivate = p.Repository.Private
	ev.Job.Organisation = p.Organization.Login
	return ev, nil
}

func parseCheck(body []byte) (forge.Event, error) {
	var p struct {
		envelope
		Check struct {
			ExternalID string `json:"external_id"`
		} `json:"check_run"`
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return forge.Event{}, err
	}
	ev := p.event()
	if p.Action == "rerequested" && p.Check.ExternalID != "" {
		ev.Kind = forge.EventRecheck
		ev.CheckExternalID = p.Check.ExternalID
	}
	return ev, nil
}

// parseSuite reads the event of "Re-run all checks", which tells of no single
// check run. Every App that may write checks gets it.
func parseSuite(body []byte) (forge.Event, error) {
	var p struct {
		envelope
		Suite struct {
			HeadSHA string `json:"head_sha"`
		} `json:"check_suite"`
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return forge.Event{}, err
	}
	ev := p.event()
	if p.Action == "rerequested" && p.Suite.HeadSHA != "" {
		ev.Kind = forge.EventRecheck
		ev.CheckHeadSHA = p.Suite.HeadSHA
	}
	return ev, nil
}

// parseGone reads the events after which we can no longer reach a repository.
func parseGone(name string, body []byte) (forge.Event, error) {
	var p struct {
		envelope
		Removed []wireRepository `json:"repositories_removed"`
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return forge.Event{}, err
	}
	ev := p.event()
	switch name + "." + p.Action {
	case "installation.deleted", "installation.suspend":
		ev.Kind = forge.EventRepoGone
		ev.Repo = forge.Repo{InstallationID: p.Installation.ID}
	case "repository.deleted":
		ev.Kind = forge.EventRepoGone
		ev.Gone = []forge.Repo{ev.Repo}
	case "installation_repositories.removed":
		for _, r := range p.Removed {
			ev.Gone = append(ev.Gone, r.repo(p.Installation.ID))
		}
		if len(ev.Gone) > 0 {
			ev.Kind = forge.EventRepoGone
			ev.Repo = ev.Gone[0]
		}
	}
	return ev, nil
}
