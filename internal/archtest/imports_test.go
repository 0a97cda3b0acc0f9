package archtest

import (
	"go/ast"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// rule says what packages must not import.
type rule struct {
	packages  string // folders, from the root: a regular expression
	except    string // but not these
	forbidden string // import paths
	allowed   string // but these
	why       string
}

const (
	pure     = `^internal/(sched|access|cirun|health)$`
	assembly = `^(cmd/.*|internal/(e2e|bench|demo)(/.*)?)$` // where the parts are put together
)

var rules = []rule{
	{
		packages: `^\.$`, forbidden: `\.|^gpuserver/`,
		why: "the root package holds the words only; it imports the standard library",
	},
	{
		packages: `^internal/cloud(/|$)`, forbidden: `^gpuserver/internal/(fleet|store|forge|sched|intake|access|admission)(/|$)`,
		why: "a driver carries out single operations; it knows neither jobs nor the store",
	},
	{
		packages: pure, forbidden: `^(os|net|net/http|net/rpc|database/sql|syscall|log|log/slog|io/ioutil|plugin|unsafe)(/|$)`, allowed: `^net/(netip|url)$`,
		why: "deciding is apart from doing: what it needs is given, what it decides is returned",
	},
	{
		packages: pure, except: `^internal/health$`, forbidden: `^gpuserver/internal/`, allowed: `^gpuserver/internal/(sched|access|cirun)$`,
		why: "what decides stands on words and other pure packages alone",
	},
	{
		packages: `^internal/health$`, forbidden: `^gpuserver/internal/`, allowed: `^gpuserver/internal/(gate|pci)$`,
		why: "what is decided about cards stands on the words of those who look at them, and on nothing else",
	},
	{
		packages: `^internal/`, except: `^internal/(api|dashboard|metrics|e2e|bench|demo)(/|$)`, forbidden: `^gpuserver/internal/(api|dashboard)(/|$)`,
		why: "stages do not know who looks at them",
	},
	{
		packages: `.`, except: assembly, forbidden: `^gpuserver/internal/config$`,
		why: "packages are given their options; only the command line reads the file",
	},
	{
		packages: `.`, except: assembly + `|^internal/(fleet|cloud/.*|guest/guesttest)$`, forbidden: `^gpuserver/internal/cloud(/|$)`,
		why: "only the fleet calls a driver",
	},
	{
		packages: `^internal/store$`, forbidden: `^gpuserver/internal/`,
		why: "everything stands on the store; it stands on the words alone",
	},
	{packages: `.`, forbidden: `^gpuserver/cmd/`, why: "commands are the outermost layer"},
	{
		packages: `.`, except: assembly + `|test$|^internal/testdeps$`, forbidden: `^gpuserver/.*test$|^gpuserver/internal/testdeps$|^testing$`, allowed: `runnerclient$`,
		why: "what helps tests is not part of the program",
	},
	{packages: `.`, forbidden: `(^|/)gopkg\.in/yaml\.|^github\.com/(stretchr/testify|pkg/errors|robfig/cron)`, why: "chosen against: see docs/decisions"},
}

func (r rule) broken(p pkg) []string {
	if !regexp.MustCompile(r.packages).MatchString(p.dir) || r.except != "" && regexp.MustCompile(r.except).MatchString(p.dir) {
		return nil
	}
	var out []string
	for path, file := range p.imports() {
		if regexp.MustCompile(r.forbidden).MatchString(path) && (r.allowed == "" || !regexp.MustCompile(r.allowed).MatchString(path)) {
			out = append(out, file+" imports "+path+": "+r.why)
		}
	}
	slices.Sort(out)
	return out
}

func TestImportsGoOneWay(t *testing.T) {
	for _, p := range packages(t) {
		for _, r := range rules {
			for _, b := range r.broken(p) {
				t.Error(b)
			}
		}
	}
}

// Each rule is for packages that are there, or will be: one that is spelled
// wrong would hold forever.
func TestRulesMatchSomething(t *testing.T) {
	all := packages(t)
	for _, r := range rules {
		if !slices.ContainsFunc(all, func(p pkg) bool { return regexp.MustCompile(r.packages).MatchString(p.dir) }) {
			t.Errorf("no package matches %s", r.packages)
		}
	}
}

// A rule that is broken is found.
func TestRulesFindWhatTheyForbid(t *testing.T) {
	for _, tt := range []struct{ dir, path string }{
		{".", "github.com/google/go-cmp/cmp"},
		{".", "gpuserver/internal/store"},
		{"internal/cloud/libvirt", "gpuserver/internal/store"},
		{"internal/cloud/fake", "gpuserver/internal/fleet"},
		{"internal/sched", "os"},
		{"internal/access", "net/http"},
		{"internal/cirun", "database/sql"},
		{"internal/sched", "gpuserver/internal/store"},
		{"internal/sched", "gpuserver/internal/pci"},
		{"internal/health", "os"},
		{"internal/health", "gpuserver/internal/store"},
		{"internal/fleet", "gpuserver/internal/api"},
		{"internal/intake", "gpuserver/internal/dashboard"},
		{"internal/fleet", "gpuserver/internal/config"},
		{"internal/intake", "gpuserver/internal/cloud"},
		{"internal/store", "gpuserver/internal/fleet"},
		{"internal/store", "testing"},
	} {
		p := pkg{dir: tt.dir, files: map[string]*ast.File{"x.go": {Imports: []*ast.ImportSpec{{Path: &ast.BasicLit{Value: `"` + tt.path + `"`}}}}}}
		if !slices.ContainsFunc(rules, func(r rule) bool { return len(r.broken(p)) > 0 }) {
			t.Errorf("%s may import %s", tt.dir, tt.path)
		}
	}
}

// What decides is given the time: the same question has the same answer.
func TestPurePackagesDoNotAskTheClock(t *testing.T) {
	for _, p := range packages(t) {
		if !regexp.MustCompile(pure).MatchString(p.dir) {
			continue
		}
		for _, f := range p.files {
			ast.Inspect(f, func(n ast.Node) bool {
				s, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, ok := s.X.(*ast.Ident)
				if ok && (x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "After", "Sleep", "Tick"}, s.Sel.Name) ||
					strings.HasPrefix(x.Name, "rand")) {
					t.Errorf("%s: %s.%s in a package that decides", p.fset.Position(s.Pos()), x.Name, s.Sel.Name)
				}
				return true
			})
		}
	}
}
