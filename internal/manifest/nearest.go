package manifest

import (
	"slices"
	"strings"
)

// nearest gives the candidate that a misspelt word most likely means, "" when
// none is close. Words in another order count as close: service-pod for
// pod-service.
func nearest(word string, candidates []string) string {
	best, least := "", 1+max(2, len(word)/3)
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

// distance is the Levenshtein distance, in bytes; labels are ASCII. Long texts
// are never close, which keeps the work small.
func distance(a, b string) int {
	if len(a) > 100 || len(b) > 100 {
		return 100
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
