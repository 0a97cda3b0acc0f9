package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"gpuserver"
)

// Problem is one mistake in a configuration file.
type Problem struct {
	File   string `json:"file"`
	Line   int    `json:"line"`   // from 1
	Column int    `json:"column"` // from 1, in characters
	Text   string `json:"text"`   // what is wrong and what was expected; never a secret
}

// String gives FILE:LINE:COLUMN: text.
func (p Problem) String() string {
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Text)
}

// Problems are all mistakes in a file, by line and column.
type Problems []Problem

// Error gives one problem a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// err sorts the problems and makes an error of them, nil if there are none.
func (ps Problems) err(name string) error {
	if len(ps) == 0 {
		return nil
	}
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	public := fmt.Sprintf("the configuration file %s has %d mistakes; gpuserver config check lists them", name, len(ps))
	if len(ps) == 1 {
		public = fmt.Sprintf("the configuration file %s has a mistake", name)
	}
	return &gpuserver.Error{Kind: gpuserver.KindInvalid, Public: public, Err: ps}
}

// nearest gives the word of a list that is most like s, or "" if none is
// close enough to have been meant.
func nearest(s string, words []string) string {
	const longest = 40 // no word of ours is longer; a quadratic search of more would be an attack
	if len(s) > longest {
		return ""
	}
	best, bestDist := "", max(1, len(s)/3)+1
	for _, w := range words {
		if d := editDistance(s, w); d < bestDist {
			best, bestDist = w, d
		}
	}
	return best
}

// editDistance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b (optimal string alignment), without regard to
// case.
func editDistance(a, b string) int {
	as, bs := []rune(strings.ToLower(a)), []rune(strings.ToLower(b))
	before, last, row := make([]int, len(bs)+1), make([]int, len(bs)+1), make([]int, len(bs)+1)
	for j := range row {
		row[j] = j
	}
	for i := range as {
		before, last, row = last, row, before
		row[0] = i + 1
		for j := range bs {
			cost := 1
			if as[i] == bs[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && as[i] == bs[j-1] && as[i-1] == bs[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(bs)]
}
