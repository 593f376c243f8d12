package directory

import (
	"os"
	"path/filepath"
)

// Names lists the files in a folder that the source would read, in the order in
// which it reads them.
func Names(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if eligible(e.Name()) {
			list = append(list, filepath.Join(folder, e.Name()))
		}
	}
	return list, nil
}
