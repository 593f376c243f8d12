// Package explain says why a flow passes or not: what each end's policies say, what
// the table does with it, and what else could stop it.
package explain

import (
	"errors"

	"edgepolicy.io/edgepolicyd/internal/inventory"
	"edgepolicy.io/edgepolicyd/internal/ruleset"
)

// Question is what is asked, as it was typed.
type Question struct {
	From string `json:"from"` // "namespace/pod", "pod" of the namespace default, an address, or "gateway"
	To   string `json:"to"`
	Port string `json:"port,omitempty"` // "5432/TCP", "5432" (of TCP), "ICMP"; empty: everything that the ends' policies tell apart
}

// Input is what the answer is made from. It is not changed.
type Input struct {
	Snapshot   *inventory.Snapshot
	Options    *inventory.Options
	Table      *ruleset.Table // in force, or what files would give
	Interfaces ruleset.Interfaces
	Counters   map[string]ruleset.Counts // of the table, by name; nil where nothing runs
	Others     []ruleset.BaseChain       // of other programs
	Outside    map[inventory.Key]string  // pods whose traffic does not pass the table, and why (S34)
}

// Explanation is the answer.
type Explanation struct {
	Question Question `json:"question"`
	Allowed  bool     `json:"allowed"`
}

// Explain answers.
func Explain(in Input, q Question) (Explanation, error) {
	return Explanation{}, errors.New("not there yet")
}
