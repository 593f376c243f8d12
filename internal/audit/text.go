package audit

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// escape writes what is not printable as Go does in strings (\n, \x1b, \u202e), but
// for the characters of keep: what comes from files must not command the terminal of
// who reads the log, nor make a second line.
func escape(s, keep string) string {
	shown := func(r rune) bool { return unicode.IsPrint(r) || strings.ContainsRune(keep, r) }
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !shown(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for i, size := 0, 0; i < len(s); i += size {
		var r rune
		r, size = utf8.DecodeRuneInString(s[i:])
		if shown(r) && (r != utf8.RuneError || size > 1) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.Quote(s[i : i+size])
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// quoted is the string as slog's text has it: in quotes where it could be taken for
// anything else.
func quoted(s string) string {
	if s != "" && utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool {
		return r == '"' || r == '=' || r == ' ' || !unicode.IsPrint(r)
	}) < 0 {
		return s
	}
	return strconv.Quote(s)
}
