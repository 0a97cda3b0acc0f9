package cirun

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Finding is one thing that is wrong or doubtful in a file.
type Finding struct {
	Path string // the file, as it was given to Parse
	Line int    // from 1
	Rule Rule
	Text string // one line: what is wrong, what follows from it, what to do
}

// String gives the line that the linter prints: "FILE:LINE: RULE: text".
func (f Finding) String() string {
	return fmt.Sprintf("%s:%d: %s: %s", f.Path, f.Line, f.Rule, f.Text)
}

// SortFindings orders findings by file, line, rule and text, and drops repeats.
func SortFindings(fs []Finding) []Finding {
	slices.SortFunc(fs, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), cmp.Compare(a.Line, b.Line),
			strings.Compare(string(a.Rule), string(b.Rule)), strings.Compare(a.Text, b.Text))
	})
	return slices.Compact(fs)
}

// Rule names one check of the linter; RuleDocs says what each means.
type Rule string

// The rules.
const (
	RuleSyntax          Rule = "syntax"
	RuleDocuments       Rule = "extra-document"
	RuleEmptyFile       Rule = "empty-file"
	RuleVersion         Rule = "version"
	RuleUnknownKey      Rule = "unknown-key"
	RuleDuplicateKey    Rule = "duplicate-key"
	RuleWrongType       Rule = "wrong-type"
	RuleMissingKey      Rule = "missing-key"
	RuleEmptyLabel      Rule = "empty-label"
	RuleBadLabel        Rule = "bad-label"
	RuleDuplicateRunner Rule = "duplicate-runner"
	RuleDuplicatePolicy Rule = "duplicate-policy"
	RuleDuplicateEntry  Rule = "duplicate-entry"
	RuleLetterCase      Rule = "letter-case"
	RuleZipLength       Rule = "zip-length"
	RuleUnknownCloud    Rule = "unknown-cloud"
	RuleUnknownRole     Rule = "unknown-role"
	RuleBadSize         Rule = "bad-size"
	RuleIdleConflict    Rule = "idle-conflict"
	RuleBadIdle         Rule = "bad-idle"
	RuleBadDay          Rule = "bad-day"
	RuleBadTime         Rule = "bad-time"
	RuleBadTimezone     Rule = "bad-timezone"
	RuleBadRepo         Rule = "bad-repo"
	RuleBadURL          Rule = "bad-url"
	RuleOpenPolicy      Rule = "open-policy"
	RuleEmptyList       Rule = "empty-list"
	RuleDanglingPolicy  Rule = "dangling-policy"
	RuleUnknownPolicy   Rule = "unknown-policy"
	RuleUnknownResource Rule = "unknown-resource"
	RuleUngranted       Rule = "ungranted-runner"
	RuleRedefined       Rule = "redefined-runner"
	RuleUnmappedCloud   Rule = "unmapped-cloud"
	RuleUnmappedFlavor  Rule = "unmapped-flavor"
	RuleUnmappedImage   Rule = "unmapped-image"
	RuleGPUIgnored      Rule = "gpu-ignored"
)

// RuleDoc says what a rule finds.
type RuleDoc struct {
	Rule Rule
	Text string
}

// RuleDocs documents every rule, in the order in which `cirun lint --rules`
// prints them.
var RuleDocs = []RuleDoc{
	{RuleSyntax, "The file is not YAML, too large, too deep, or its aliases expand without end; nothing in it is used."},
	{RuleDocuments, "The file holds more than one YAML document; only the first is used."},
	{RuleEmptyFile, "The file holds no runners, policies or grants."},
	{RuleVersion, "The version of an access file is not 1."},
	{RuleUnknownKey, "A key that is not known; it is ignored."},
	{RuleDuplicateKey, "A key stands twice in one mapping; of a runner the last one counts, a policy is disabled."},
	{RuleWrongType, "A value has the wrong type; what it belongs to is disabled."},
	{RuleMissingKey, "A key without which the entry cannot be used is missing; the entry is disabled."},
	{RuleEmptyLabel, "A runner has no labels, or an empty one."},
	{RuleBadLabel, "A label that no job can ask for: it holds \"--\", a comma or a line break, is too long, is \"self-hosted\", or is the name of a runner that GitHub hosts."},
	{RuleDuplicateRunner, "Two runners have the same name; both are used, one after the other."},
	{RuleDuplicatePolicy, "Two policies have the same id; only the first is used."},
	{RuleDuplicateEntry, "The same label, team, role, user or policy stands twice in one list, or a policy is attached to a resource twice."},
	{RuleLetterCase, "Two names differ only in the case of their letters."},
	{RuleZipLength, "Lists of one runner differ in length; positions that not all of them have are not used."},
	{RuleUnknownCloud, "A cloud that neither Cirun nor the configuration knows."},
	{RuleUnknownRole, "A role that is none of GitHub's own (admin, maintain, write, triage, read)."},
	{RuleBadSize, "The instance type of an on_prem runner is not like 8vcpu-8gb-100gb."},
	{RuleIdleConflict, "Idle settings contradict each other: schedule together with usage_based or replicas, or overlapping times with different replicas."},
	{RuleBadIdle, "An idle setting that cannot be: no replicas, a negative or huge number, an unknown trigger."},
	{RuleBadDay, "A day of a schedule is not like mon or mon-fri."},
	{RuleBadTime, "A time of a schedule is not like 9-17 (whole hours, 0 to 24, the first before the second)."},
	{RuleBadTimezone, "A time zone is not in the TZ database."},
	{RuleBadRepo, "The repository of a policy is not \"name\" or \"organisation/name\"."},
	{RuleBadURL, "users_from_json is not an https address."},
	{RuleOpenPolicy, "A policy names neither teams, roles nor users; it grants nothing."},
	{RuleEmptyList, "A list of teams, roles or users is empty, so that nobody is in it."},
	{RuleDanglingPolicy, "A policy that is attached to no resource."},
	{RuleUnknownPolicy, "A resource names a policy that does not exist."},
	{RuleUnknownResource, "A resource that is no runner of the organisation's file."},
	{RuleUngranted, "A runner that no resource names: with an access file, nobody can have it."},
	{RuleRedefined, "A repository's file redefines a runner of the organisation; its own is ignored."},
	{RuleUnmappedCloud, "With --config: no cloud of the configuration serves this cloud and region."},
	{RuleUnmappedFlavor, "With --config: no flavor of the configuration has this instance type as name or alias."},
	{RuleUnmappedImage, "With --config: no image of the configuration has this machine image as name or alias."},
	{RuleGPUIgnored, "With --config: the gpu is not part of a flavor's alias (INSTANCE_TYPE+GPU), so the flavor alone decides."},
}
