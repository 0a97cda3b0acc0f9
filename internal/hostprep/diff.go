package hostprep

import (
	"fmt"
	"strings"
)

// diff gives the change of a file as a unified diff of one hunk; nil is no file.
func diff(path string, before, after []byte) string {
	a, b := lines(before), lines(after)
	var out strings.Builder
	name := func(there bool) string {
		if there {
			return "/" + path
		}
		return "/dev/null"
	}
	fmt.Fprintf(&out, "--- %s\n+++ %s\n", name(before != nil), name(after != nil))
	if len(a)+len(b) == 0 {
		return out.String()
	}
	start := func(n int) int { return min(n, 1) } // a hunk of no lines is at line 0
	fmt.Fprintf(&out, "@@ -%d,%d +%d,%d @@\n", start(len(a)), len(a), start(len(b)), len(b))
	same := common(a, b)
	put := func(mark, line string) {
		out.WriteString(mark + line + "\n")
	}
	for _, s := range append(same, [2]int{len(a), len(b)}) {
		for len(a) > 0 && s[0] > 0 {
			put("-", a[0])
			a, s[0] = a[1:], s[0]-1
		}
		for len(b) > 0 && s[1] > 0 {
			put("+", b[0])
			b, s[1] = b[1:], s[1]-1
		}
		if len(a) > 0 && len(b) > 0 {
			put(" ", a[0])
			a, b = a[1:], b[1:]
		}
	}
	return out.String()
}

func lines(text []byte) []string {
	if len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// common gives the longest common subsequence of two short texts: for each of
// its lines, how many lines of a and of b come before it since the last.
func common(a, b []string) (steps [][2]int) {
	length := make([][]int, len(a)+1)
	for i := range length {
		length[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				length[i][j] = length[i+1][j+1] + 1
			} else {
				length[i][j] = max(length[i+1][j], length[i][j+1])
			}
		}
	}
	i, j := 0, 0
	step := [2]int{}
	for i < len(a) && j < len(b) {
		switch {
		case a[i] == b[j]:
			steps = append(steps, step)
			step = [2]int{}
			i, j = i+1, j+1
		case length[i+1][j] >= length[i][j+1]:
			i, step[0] = i+1, step[0]+1
		default:
			j, step[1] = j+1, step[1]+1
		}
	}
	return steps
}
