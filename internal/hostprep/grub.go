package hostprep

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Where GRUB's settings are, from the root. Debian's grub-mkconfig reads
// grubDefault and then grubDir/*.cfg in the order of their names; the last are
// Debian's own addition.
const (
	grubDefault = "etc/default/grub"
	grubDir     = "etc/default/grub.d"
	grubOurs    = "etc/default/grub.d/zz-gpuserver.cfg"
	grubConfig  = "boot/grub/grub.cfg"
)

// grubSettings are the variables of GRUB's settings, without our file.
type grubSettings struct {
	vars map[string]string
	odd  []string // FILE:LINE of what may set parameters in a way that was not understood
}

// readGrub reads the settings. Absent files are empty.
func readGrub(root fs.FS) grubSettings {
	s := grubSettings{vars: map[string]string{}}
	names := []string{grubDefault}
	more, _ := fs.Glob(root, grubDir+"/*.cfg") // the pattern is well formed
	slices.Sort(more)
	for _, name := range append(names, more...) {
		if name == grubOurs {
			continue
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			continue
		}
		s.read("/"+name, string(text))
	}
	return s
}

// parameters are the kernel's, of normal starts.
func (s *grubSettings) parameters() []string {
	return strings.Fields(s.vars["GRUB_CMDLINE_LINUX"] + " " + s.vars["GRUB_CMDLINE_LINUX_DEFAULT"])
}

// assignment begins a line that sets a variable.
var assignment = regexp.MustCompile(`^(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)(\+?=)`)

// read takes the assignments of a file, which is a shell's. Whatever else a
// shell could do there is left, and noted as odd if it may matter: the generated
// grub.cfg has the last word.
func (s *grubSettings) read(name, text string) {
	line := 1
	for text != "" {
		blank := len(text) - len(strings.TrimLeft(text, " \t\n;"))
		line += strings.Count(text[:blank], "\n")
		text = text[blank:]
		if text == "" {
			return
		}
		end := strings.IndexByte(text+"\n", '\n')
		if text[0] == '#' {
			text = text[end:]
			continue
		}
		if m := assignment.FindStringSubmatch(text); m != nil {
			value, rest, ok := s.word(text[len(m[0]):])
			after := strings.TrimLeft(rest, " \t")
			if ok && (after == "" || strings.ContainsRune("\n;#", rune(after[0]))) {
				if m[2] == "+=" {
					value = s.vars[m[1]] + value
				}
				s.vars[m[1]] = value
				line += strings.Count(text[:len(text)-len(rest)], "\n")
				text = rest
				continue
			}
		}
		if matters.MatchString(text[:end]) {
			s.odd = append(s.odd, fmt.Sprintf("%s:%d", name, line))
		}
		text = text[end:]
	}
}

// matters is what may change parameters, or make what follows conditional.
var matters = regexp.MustCompile(`GRUB_CMDLINE_LINUX|^(if|case|for|while|\.|source|eval)[ \t]`)

// variable is a use of one.
var variable = regexp.MustCompile(`^\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})`)

// word reads a shell's word at the beginning of text, with quotes and variables;
// ok is false if there is more in it, such as a command's output.
func (s *grubSettings) word(text string) (value, rest string, ok bool) {
	var b strings.Builder
	quote := byte(0)
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case quote == '\'' && c != '\'':
			b.WriteByte(c)
		case c == quote && quote != 0:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote == 0 && strings.IndexByte(" \t\n;", c) >= 0:
			return b.String(), text[i:], true
		case c == '`', quote == 0 && strings.IndexByte("()&|<>", c) >= 0:
			return "", "", false
		case c == '\\':
			i++
			if i == len(text) {
				return "", "", false
			}
			if text[i] != '\n' {
				if quote == '"' && strings.IndexByte("\"\\$`", text[i]) < 0 {
					b.WriteByte('\\')
				}
				b.WriteByte(text[i])
			}
		case c == '$':
			m := variable.FindStringSubmatch(text[i:])
			if m == nil {
				return "", "", false
			}
			b.WriteString(s.vars[m[1]+m[2]])
			i += len(m[0])
			continue
		default:
			b.WriteByte(c)
		}
		i++
	}
	return b.String(), "", quote == 0
}

// grubLines gives the kernels' parameters in a generated grub.cfg: of the
// entries for this system if they are marked, else of all.
func grubLines(text string) (lines [][]string) {
	const begin, end = "### BEGIN /etc/grub.d/10_linux", "### END /etc/grub.d/10_linux"
	if _, after, ok := strings.Cut(text, begin); ok {
		text, _, _ = strings.Cut(after, end)
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) > 1 && slices.Contains([]string{"linux", "linuxefi", "linux16"}, f[0]) && strings.Contains(path.Base(f[1]), "linu") {
			lines = append(lines, f[2:])
		}
	}
	return lines
}

// verifyGrub says what is wrong with a generated grub.cfg, "" if nothing: the
// first entry, which is started unless chosen otherwise, has to have all of
// want, and each has to have what we added.
func verifyGrub(text string, want, added []string) string {
	lines := grubLines(text)
	if len(lines) == 0 {
		return "has no entry that starts Linux"
	}
	if m := missing(lines[0], want); len(m) > 0 {
		return "does not have " + strings.Join(m, " ") + " in its first entry"
	}
	for _, line := range lines {
		if m := missing(line, added); len(m) > 0 {
			return "has an entry without " + strings.Join(m, " ")
		}
	}
	return ""
}
