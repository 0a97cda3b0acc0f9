package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// pkg is one folder of Go files, without its tests.
type pkg struct {
	dir   string // from the repository's root, "." for the root
	files map[string]*ast.File
	fset  *token.FileSet
}

// imports gives the import paths of a package, each with the file that has it.
func (p pkg) imports() map[string]string {
	out := map[string]string{}
	for name, f := range p.files {
		for _, i := range f.Imports {
			if s, err := strconv.Unquote(i.Path.Value); err == nil {
				out[s] = name
			}
		}
	}
	return out
}

// packages reads the source of every package of the module.
func packages(t *testing.T) []pkg {
	t.Helper()
	root := filepath.Join("..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("the repository's root is not where this test expects it: %v", err)
	}
	byDir := map[string]pkg{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			return skip(root, rel, d)
		}
		if strings.HasSuffix(rel, ".go") && !strings.HasSuffix(rel, "_test.go") {
			return add(byDir, file, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var out []pkg
	for _, p := range byDir {
		out = append(out, p)
	}
	if len(out) < 15 {
		t.Fatalf("only %d packages were found", len(out))
	}
	return out
}

// skip leaves out folders that go leaves out, and modules of their own.
func skip(root, rel string, d fs.DirEntry) error {
	name := d.Name()
	if rel == "." {
		return nil
	}
	if name == "testdata" || name == "bin" || name == "out" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(root, rel, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

func add(byDir map[string]pkg, file, rel string) error {
	dir := path.Dir(rel)
	p, ok := byDir[dir]
	if !ok {
		p = pkg{dir: dir, files: map[string]*ast.File{}, fset: token.NewFileSet()}
		byDir[dir] = p
	}
	f, err := parser.ParseFile(p.fset, file, nil, parser.ParseComments)
	if err != nil {
		return err
	}
	p.files[rel] = f
	return nil
}
