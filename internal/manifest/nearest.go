package manifest

import (
	"slices"
	"strings"
)

// nearest gives the candidate that a misspelt word most likely means, "" when
// none is close. Words in another order count as close: service-pod for
// pod-service.
func nearest(word string, candidates []string) string {
	best, least := "", 1+max(1, len(word)/3)
	for _, c := range candidates {
		if c == "" {
			continue
		}
		d := min(distance(strings.ToLower(word), strings.ToLower(c)), 1+distance(reordered(word), reordered(c)))
		if d < least {
			best, least = c, d
		}
	}
	return best
}

// reordered sorts the words of a name.
func reordered(s string) string {
	words := strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return strings.ContainsRune("-_./", r) })
	slices.Sort(words)
	return strings.Join(words, "-")
}

// distance counts the letters to insert, drop, replace or swap with their
// neighbour (optimal string alignment), in bytes: labels are ASCII. Long texts
// are never close, which keeps the work small.
func distance(a, b string) int {
	if len(a) > 100 || len(b) > 100 {
		return 100
	}
	var before, last []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 0
			if a[i-1] != b[j-1] {
				cost = 1
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
