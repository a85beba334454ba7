"""The formats of files that hold records. A new one is a module here and a line in `zoo.registry.FILE_FORMATS`.

A module has `SUFFIXES`, those of the files that are read of a directory, in lower case, and
`read(files, columns, *, whole, start)`, which yields a `zoo.data.readers.Record` or `Fault` for each record of the
files (paths, one after the other) from number `start` on. Each record must have the fields `columns`; `whole` asks for
the others too. A file that cannot be read is a `UserError`.
"""
