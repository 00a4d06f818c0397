"""The path of the data: conversation -> template -> tokenizer -> encoding -> store -> packing -> batches."""
