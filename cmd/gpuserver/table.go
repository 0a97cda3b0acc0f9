package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"charm.land/lipgloss/v2"
	"charm.land/lipgloss/v2/table"
	"github.com/charmbracelet/colorprofile"
	"github.com/dustin/go-humanize"
)

var (
	styleHead = lipgloss.NewStyle().Bold(true).PaddingRight(2)
	styleCell = lipgloss.NewStyle().PaddingRight(2)
	styleName = lipgloss.NewStyle().Faint(true).Width(12)
)

// printTable prints rows under a header: styled on a terminal, plain text
// elsewhere or with NO_COLOR. Cells may come from anybody.
func printTable(w io.Writer, head []string, rows [][]string) error {
	t := table.New().Headers(head...).Border(lipgloss.HiddenBorder()).Wrap(false).
		BorderTop(false).BorderBottom(false).BorderLeft(false).BorderRight(false).BorderHeader(false).BorderColumn(false).
		StyleFunc(func(row, _ int) lipgloss.Style {
			if row == table.HeaderRow {
				return styleHead
			}
			return styleCell
		})
	for _, row := range rows {
		clean := make([]string, len(row))
		for i, cell := range row {
			clean[i] = printable(cell)
		}
		t.Row(clean...)
	}
	return printStyled(w, t.String()+"\n")
}

// printStyled prints text without the styles that w cannot show and without the
// blanks that only fill a column.
func printStyled(w io.Writer, text string) error {
	var b strings.Builder
	cw := &colorprofile.Writer{Forward: &b, Profile: colorprofile.Detect(w, os.Environ())}
	if _, err := io.WriteString(cw, text); err != nil {
		return err
	}
	lines := strings.SplitAfter(b.String(), "\n")
	for i, l := range lines {
		if s, ok := strings.CutSuffix(l, "\n"); ok {
			lines[i] = strings.TrimRight(s, " ") + "\n"
		}
	}
	_, err := io.WriteString(w, strings.Join(lines, ""))
	return err
}

// fields prints names with their values, one a line; empty values are left out.
func fields(w io.Writer, pairs ...string) error {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(&b, "%s%s\n", styleName.Render(pairs[i]), printable(pairs[i+1]))
		}
	}
	return printStyled(w, b.String())
}

// printable makes text harmless on a terminal: names and reasons come from
// forges and guests, and a control character could rewrite what was printed.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar || unicode.Is(unicode.Bidi_Control, r) {
			return '?'
		}
		return r
	}, s)
}

// ago says how long ago a time was; "" if it never was.
func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return humanize.Time(t)
}

// lasted says how long something took or takes, "" if it has not begun.
func lasted(from, to time.Time) string {
	if from.IsZero() {
		return ""
	}
	if to.IsZero() {
		to = time.Now()
	}
	return duration(to.Sub(from))
}

// duration says a duration with as many digits as matter.
func duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
